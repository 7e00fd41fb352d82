"""One tap for every form in which a module is called and answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin.errors import AttributionError, HookNotFiredError, InputError
from salve_plugin.site import Side, Site
from salve_plugin.taps import reading, tapped, tapping, watched
from salve_plugin.validate.tracing import traced


class Pair(NamedTuple):
    value: Any
    rest: Any


FORMS: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda x: x,
    "tuple": lambda x: (x, "rest"),
    "list": lambda x: [x, "rest"],
    "named tuple": lambda x: Pair(x, "rest"),
    "torch's own": lambda x: torch.max(x, dim=1) if isinstance(x, Tensor) else (x, "rest"),
}

CALLS: dict[str, Callable[[nn.Module, Any, Tensor], Any]] = {
    "positions": lambda module, x, y: module(x, y),
    "first by position": lambda module, x, y: module(x, y=y),
    "keywords": lambda module, x, y: module(x=x, y=y),
    "keywords in another order": lambda module, x, y: module(y=y, x=x),
}


def peeled(value: Any) -> Tensor:
    """Return the first tensor of a nested tuple or list."""
    while not isinstance(value, Tensor):
        value = value[0]
    return value


class Part(nn.Module):
    """Answers in a form, with its first input times three."""

    def __init__(self, form: Callable[[Any], Any]) -> None:
        super().__init__()
        self.form = form
        self.got: list[Any] = []

    def forward(self, x: Any, y: Tensor) -> Any:
        self.got.append((x, y))
        return self.form(peeled(x) * 3)


@given(
    given_form=st.sampled_from([name for name in FORMS if name != "torch's own"]),
    result_form=st.sampled_from(list(FORMS)),
    outer_form=st.sampled_from(list(FORMS)),
    call=st.sampled_from(list(CALLS)),
    side=st.sampled_from(["in", "out"]),
    replaces=st.booleans(),
)
def test_whatever_the_form_the_first_tensor_is_tapped_and_the_rest_stays(
    given_form: str, result_form: str, outer_form: str, call: str, side: Side, replaces: bool
) -> None:
    part = Part(lambda x: FORMS[outer_form](FORMS[result_form](x)))
    values, other = torch.arange(6.0).reshape(2, 3), torch.tensor(7.0)
    x = FORMS[given_form](values)
    plain = CALLS[call](part, x, other)
    seen: list[Tensor] = []

    def function(activation: Tensor) -> Tensor | None:
        seen.append(activation.clone())
        return activation + 1 if replaces else None

    with tapping([part], side, function):
        result = CALLS[call](part, x, other)
    assert [tensor.shape for tensor in seen] == [peeled(x if side == "in" else plain).shape]
    assert torch.equal(seen[0], peeled(x if side == "in" else plain))
    assert torch.equal(peeled(x), values)
    shift = 0 if not replaces else 3 if side == "in" else 1
    assert torch.equal(peeled(result), peeled(plain) + shift)
    assert same_form(result, plain)
    got, got_other = part.got[-1]
    assert got_other is other
    assert same_form(got, x)
    assert not part._forward_hooks
    assert not part._forward_pre_hooks


def same_form(one: Any, other: Any) -> bool:
    """Compare types and all but the first tensors."""
    if isinstance(one, Tensor) or type(one) is not type(other):
        return type(one) is type(other)
    rest = all(a is b or torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
    return len(one) == len(other) and rest and same_form(one[0], other[0])


class Readers(nn.Module):
    """Several linear layers that read one tensor, called in any form."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.readers = nn.ModuleList(nn.Linear(3, 2) for _ in range(count))
        self.silent: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        calls = (lambda layer: layer(x), lambda layer: layer(input=x))
        return torch.stack(
            [
                calls[number % 2](layer)
                for number, layer in enumerate(self.readers)
                if number not in self.silent
            ]
        )


@given(count=st.integers(1, 4), passes=st.integers(1, 3), silent=st.booleans())
def test_several_readers_get_one_answer_a_pass(count: int, passes: int, silent: bool) -> None:
    model = Readers(count)
    model.silent = {count - 1} if silent and count > 1 else set()
    paths = tuple(f"readers.{number}" for number in range(count))
    site = Site("hook_in", paths[0], "in", "pooled", 3, readers=paths)
    x = torch.ones(2, 3)
    answers: list[Tensor] = []

    def function(activation: Tensor) -> Tensor:
        assert activation is x
        answers.append(torch.full_like(activation, float(len(answers))))
        return answers[-1]

    with tapped(model, site, function):
        # One and the same tensor each time: that does not make it one pass.
        results = [model(x) for _ in range(passes)]
    assert len(answers) == passes
    for answer, result in zip(answers, results, strict=True):
        assert torch.equal(result, model(answer))


def test_contexts_may_nest_and_end_in_any_order() -> None:
    part, seen = Part(FORMS["tensor"]), []
    x = torch.ones(1, 3)
    first = tapping([part], "in", lambda x: seen.append("first"))
    second = tapping([part], "out", lambda x: seen.append("second"))
    first.__enter__()
    second.__enter__()
    part(x, x)
    first.__exit__(None, None, None)
    part(x, x)
    second.__exit__(None, None, None)
    part(x, x)
    assert seen == ["first", "second", "second"]


@pytest.mark.parametrize("result", [None, {"x": torch.ones(1)}, (), (None, torch.ones(1))])
def test_where_there_is_no_tensor_the_error_says_what_there_is(result: Any) -> None:
    part = Part(lambda x: result)
    x = torch.ones(1, 3)
    with (
        tapping([part], "out", lambda x: x),
        pytest.raises(InputError, match=r"first output of Part is no tensor but \w+"),
    ):
        part(x, x)
    with tapping([part], "in", lambda x: x):
        with pytest.raises(InputError, match="first input of Part is no tensor but str"):
            part("text", x)
        with pytest.raises(InputError, match="without any input"):
            part()
    assert not part._forward_hooks
    assert not part._forward_pre_hooks


def test_a_site_is_read_and_replaced_in_a_module_called_by_keywords() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(input=x)
            return result

    model, x = Model(), torch.randn(4, 3)
    site = Site("unembed.hook_in", "head", "in", "pooled", 3, readers=("head",))
    with reading(model, [site]) as seen:
        model(x)
    assert torch.equal(seen[site.name], x)
    with tapped(model, site, torch.zeros_like):
        assert torch.equal(model(x), model.head.bias.expand(4, 2))
    with traced(lambda: model(x), (model.head, "in"), (model.head, "out"), None) as graph:
        (gradient,) = torch.autograd.grad(graph.site[0].sum(), graph.layer[0])
    assert torch.equal(gradient, model.head.weight.sum(0).expand(4, 3))


def test_a_gradient_passes_through_the_functions_in_order_and_leaves_nothing_behind() -> None:
    leaf, seen = torch.ones(2, requires_grad=True), []

    def add(gradient: Tensor) -> Tensor:
        seen.append("add")
        return gradient + 1

    def double(gradient: Tensor) -> Tensor:
        seen.append("double")
        return gradient * 2

    (gradient,) = torch.autograd.grad((watched(leaf, [add, double]) * 5).sum(), leaf)
    assert gradient.tolist() == [12.0, 12.0]
    assert seen == ["add", "double"]
    torch.autograd.grad((leaf * 5).sum(), leaf)
    assert seen == ["add", "double"]
    unwatched = torch.ones(2)
    assert watched(unwatched, [add]) is unwatched


def test_a_traced_layer_of_integers_is_refused() -> None:
    part = Part(FORMS["tensor"])
    x = torch.ones(1, 3, dtype=torch.long)
    with (
        pytest.raises(AttributionError, match=r"torch\.int64"),
        traced(lambda: part(x, x), (part, "in"), (part, "out"), None),
    ):
        pass
    with pytest.raises(HookNotFiredError), traced(lambda: x, (part, "in"), (part, "out"), None):
        pass
