"""The refitted head against another solver, and what its pull and its weights mean."""

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw, weight_after
from torch import Tensor
from torch.nn import functional

from salve_plugin import Activations, Edit, HookedModel, evaluate, refit_head
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.demo import digits
from salve_plugin.errors import InputError


def parameters(hooked: HookedModel, edit: Edit) -> tuple[Tensor, Tensor | None]:
    bias = edit.edited(hooked.model).get_submodule("head")._parameters.get("bias")
    return weight_after(hooked, edit), None if bias is None else bias.detach().double()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**20), st.sampled_from([2, 4, 9]), st.booleans(),
    st.sampled_from([1e-3, 1e-1, 10.0]), st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_it_is_the_optimum(
    with_head: Callable[..., HookedModel],
    seed: int,
    classes: int,
    has_bias: bool,
    l2: float,
    scale: float,
) -> None:
    weight = draw(seed, classes, 6) / scale
    hooked = with_head(weight, draw(seed + 1, classes) if has_bias else None)
    x, labels = draw(seed + 2, 50, 6) * scale, torch.arange(50) % classes
    shares = draw(seed + 3, 50).abs()
    edit = refit_head(hooked, (x, labels), weights=shares, l2=l2)
    after, bias = parameters(hooked, edit)
    # At the optimum of a convex loss, and nowhere else, the gradient vanishes: by autograd, and in
    # units that do not depend on the scale of the inputs.
    size = float((shares @ x.square().mean(1) / shares.sum()).sqrt())
    parts = [after.clone().requires_grad_()]
    pull = (size * (parts[0] - weight)).square().sum()
    if bias is not None:
        parts.append(bias.clone().requires_grad_())
        pull = pull + (parts[1] - hooked.model.get_parameter("head.bias").detach()).square().sum()
    logits = functional.linear(x, *parts)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    loss = (losses * shares).sum() / shares.sum() + l2 / 2 * pull
    gradients = torch.autograd.grad(loss, parts)
    assert float(gradients[0].abs().max()) / size < 1e-6
    assert all(float(gradient.abs().max()) < 1e-6 for gradient in gradients[1:])
    assert isinstance(edit.operator, LowRankUpdate)
    assert edit.operator.rank == min(classes, 6)


def test_a_strong_pull_changes_nothing(tiny: HookedModel) -> None:
    acts = draw(0, 40, 6), torch.arange(40) % 4
    edit = refit_head(tiny, acts, l2=1e9)
    weight, bias = parameters(tiny, edit)
    assert bias is not None
    torch.testing.assert_close(weight, tiny.unembed()[0].double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(bias, tiny.unembed()[1].double(), rtol=0, atol=1e-6)


def test_weights_are_repetitions_and_groups_are_weights(
    with_head: Callable[..., HookedModel],
) -> None:
    hooked = with_head(draw(5, 3, 6), draw(6, 3))
    x, labels = draw(0, 30, 6), torch.arange(30) % 3
    twice = torch.cat([torch.arange(30), torch.arange(10)])
    weights = torch.ones(30).double()
    weights[:10] = 2
    one = refit_head(hooked, (x, labels), weights=weights)
    other = refit_head(hooked, (x[twice], labels[twice]))
    torch.testing.assert_close(
        weight_after(hooked, one), weight_after(hooked, other), rtol=1e-4, atol=1e-5
    )
    groups = (torch.arange(30) >= 6).long() * 5  # six and twenty-four images, any two names
    balanced = torch.where(groups == 0, 1 / 6, 1 / 24)
    one, other = (
        refit_head(hooked, (x, labels), **kind)  # type: ignore[arg-type] # one argument each
        for kind in ({"groups": groups}, {"weights": balanced})
    )
    torch.testing.assert_close(
        weight_after(hooked, one), weight_after(hooked, other), rtol=1e-4, atol=1e-5
    )


def test_a_real_head_comes_back_from_a_broken_one(
    digits_hooked: HookedModel, digits_acts: Activations, digits_test: digits.Split
) -> None:
    # Without a class among the images it is forgotten, with it the head stays good.
    everything = refit_head(digits_hooked, digits_acts)
    assert everything == refit_head(digits_hooked, digits_acts)
    forgotten = refit_head(
        digits_hooked, digits_acts, weights=(digits_acts.labels() != 3).double(), l2=1e-5
    )
    before = evaluate(digits_hooked, digits_test.batches())
    with everything.applied(digits_hooked):
        assert evaluate(digits_hooked, digits_test.batches()).overall >= before.overall
    with forgotten.applied(digits_hooked):
        after = evaluate(digits_hooked, digits_test.batches())
    assert float(after.accuracy[3]) < float(before.accuracy[3])
    assert float(after.accuracy[[0, 1, 2, 4, 5, 6, 7, 8, 9]].min()) > 0.9


def test_an_optimum_that_was_not_reached_is_told(
    tiny: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("salve_plugin.control.writers.refit_head")
    monkeypatch.setattr(module, "STEPS", 1)
    with pytest.warns(UserWarning, match="after 1 steps a gradient"):
        refit_head(tiny, (draw(0, 40, 6), torch.arange(40) % 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": 0.0}, "l2 0.0"),
        ({"l2": float("nan")}, "l2 nan"),
        ({"weights": torch.ones(7)}, "one number for each of 8"),
        ({"weights": -torch.ones(8)}, "from 0"),
        ({"weights": torch.zeros(8)}, "at least one above"),
        ({"groups": torch.zeros(8)}, "index of its group"),
        ({"groups": torch.zeros(8, dtype=torch.int64), "weights": torch.ones(8)}, "not both"),
        ({"weights": [1.0] * 8}, "list"),
    ],
)
def test_bad_input_is_named(
    untyped: None, tiny: HookedModel, options: dict[str, object], message: str
) -> None:
    acts = draw(0, 8, 6), torch.arange(8) % 4
    with pytest.raises(InputError, match=message):
        refit_head(tiny, acts, **options)  # type: ignore[arg-type] # what people may give
