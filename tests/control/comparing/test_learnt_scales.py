"""Learnt scales: the loss by hand, its gradient, planted scales found again, and the edits made."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin import (
    Edit,
    Gate,
    HookedModel,
    LowRankMap,
    LowRankUpdate,
    SalveError,
    attach,
    edit_at,
    learn_scales,
    status,
)
from salve_plugin.control.comparing.learnt_scales import _held, _Objective
from salve_plugin.control.comparing.parameter_changes import changes_of
from salve_plugin.demo import digits

HEAD = "unembed.hook_in"
Batches = list[tuple[Tensor, Tensor]]


def edits_of(hooked: HookedModel, seed: int = 0) -> list[Edit]:
    """Return a gate, a map of both readers of a site, and an update: three kinds of change."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    atom = nn.functional.normalize(normal(1, 6), dim=1)
    return [
        edit_at(hooked, HEAD, Gate(atom, 0.7)),
        edit_at(hooked, HEAD, LowRankMap(normal(6, 2), normal(6, 2), normal(2), 0.4), rows=[1, 3]),
        edit_at(hooked, HEAD, LowRankUpdate(normal(4, 2), normal(6, 2), normal(4))),
    ]


def images_of(seed: int = 0, n: int = 24) -> Batches:
    draw = torch.Generator().manual_seed(seed)
    x, labels = torch.randn(n, 3, generator=draw), torch.randint(4, (n,), generator=draw)
    return [(x[: n // 2], labels[: n // 2]), (x[n // 2 :], labels[n // 2 :])]


def objective(
    hooked: HookedModel, edits: list[Edit], keep: Batches, forget: Batches, blocks: int = 1
) -> _Objective:
    changes = [changes_of(hooked.model, edit) for edit in edits]
    return _Objective(hooked, changes, _held(hooked, keep), _held(hooked, forget), blocks, 0.1)


def loss_with(hooked: HookedModel, applied: list[Edit], keep: Batches, forget: Batches) -> float:
    """Return the loss without pull of the model with edits applied, by its definition."""
    model = hooked.model
    for edit in applied:
        edit.apply_(model)
    try:
        terms = {}
        for name, batches in (("keep", keep), ("forget", forget)):
            x, labels = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
            with torch.no_grad():
                logs = model(x).double().log_softmax(1)
            terms[name] = [-float(row[label]) for row, label in zip(logs, labels, strict=True)]
    finally:
        for edit in reversed(applied):
            edit.revert_(model)
    chance = float(torch.tensor(4.0).double().log())
    kept = sum(terms["keep"]) / len(terms["keep"])
    return kept - sum(min(t, chance) for t in terms["forget"]) / len(terms["forget"])


def test_zero_is_the_base_and_one_is_the_plain_sum(tiny: HookedModel) -> None:
    edits, keep, forget = edits_of(tiny), images_of(1), images_of(2)
    loss = objective(tiny, edits, keep, forget)
    base = loss_with(tiny, [], keep, forget)
    assert loss(torch.zeros(3).double().numpy())[0] == pytest.approx(base, abs=1e-6)
    # Maps and updates add up as the model adds them; the gate meets them, so it is left out here.
    both = edits[1:]
    ones = objective(tiny, both, keep, forget)(torch.ones(2).double().numpy())[0]
    assert ones == pytest.approx(loss_with(tiny, both, keep, forget) + 0.1, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), blocks=st.integers(1, 3))
def test_the_gradient_is_that_of_finite_differences(
    make_tiny: Callable[[], HookedModel], seed: int, blocks: int
) -> None:
    tiny = make_tiny()
    tiny.model.double()
    edits = edits_of(tiny, seed)
    keep, forget = ([(x.double(), y) for x, y in images_of(s)] for s in (seed + 1, seed + 2))
    loss = objective(tiny, edits, keep, forget, blocks)
    at = torch.randn(loss.n_scales, generator=torch.Generator().manual_seed(seed)).double() / 2
    gradient = loss(at.numpy())[1]
    for index in range(loss.n_scales):
        step = torch.zeros_like(at)
        step[index] = 1e-6
        difference = (loss((at + step).numpy())[0] - loss((at - step).numpy())[0]) / 2e-6
        # The bound of forgetting has a kink, which a difference may straddle.
        assert difference == pytest.approx(gradient[index], rel=1e-4, abs=2e-3)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), blocks=st.integers(1, 2))
def test_it_is_never_worse_than_none_or_all_and_the_edits_do_what_it_says(
    make_tiny: Callable[[], HookedModel], seed: int, blocks: int
) -> None:
    tiny = make_tiny()
    edits, keep, forget = edits_of(tiny, seed), images_of(seed), images_of(seed + 1)
    learnt = learn_scales(tiny, edits, keep, forget=forget, row_blocks=blocks, l2=0.01)
    assert learnt.loss <= min(learnt.loss_without, learnt.loss_plain) + 1e-9
    assert not status(tiny.model).applied
    pull = 0.005 * sum(float(scales.square().sum()) for scales in learnt.scales)
    applied = loss_with(tiny, list(learnt.edits), keep, forget)
    assert applied + pull == pytest.approx(learnt.loss, abs=1e-4)


def test_planted_scales_are_found_again(tiny: HookedModel) -> None:
    edits = edits_of(tiny, 3)[1:]
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(4))
    change = [changes_of(tiny.model, edit)[0].tensors for edit in edits]
    wanted = (0.3, 0.8)
    head = tiny.model.get_submodule("head")
    weight, bias = (
        head.get_parameter(n).detach().double()
        + sum(s * c[f"head.{n}"] for s, c in zip(wanted, change, strict=True) if f"head.{n}" in c)
        for n in ("weight", "bias")
    )
    with torch.no_grad():
        features = torch.relu(tiny.model.get_submodule("body")(x)).double()
    odds = (features @ weight.T + bias).softmax(1)
    labels = torch.multinomial(odds, 1, generator=torch.Generator().manual_seed(5))[:, 0]
    learnt = learn_scales(tiny, edits, [(x, labels)], l2=1e-6)
    assert [float(scales) for scales in learnt.scales] == pytest.approx(wanted, abs=0.1)


def test_forgetting_has_a_bound() -> None:
    hooked = attach(
        digits.load("vit", Path(__file__).parents[2] / "fixtures/digits_vit.safetensors")
    )
    split = digits.load_digits()[1]
    keep = [(split.images[:20], split.labels[:20])]
    forget = [(images[labels == 3], labels[labels == 3]) for images, labels in keep]
    rest = [(images[labels != 3], labels[labels != 3]) for images, labels in keep]
    # An edit of a hidden layer too, so that the scales reach through the network.
    edits: list[Edit] = []
    for site in ("blocks.3.ln2.hook_normalized", HEAD):
        axis = torch.randn(64, 1, generator=torch.Generator().manual_seed(len(edits)))
        edits.append(edit_at(hooked, site, LowRankMap(axis / 8, axis / 8, torch.zeros(1))))
    lower = torch.zeros(10)
    lower[3] = -9.0
    nothing = torch.zeros(10, 0), torch.zeros(64, 0)
    edits.append(edit_at(hooked, HEAD, LowRankUpdate(*nothing, lower)))
    learnt = learn_scales(hooked, edits, rest, forget=forget)
    assert learnt.loss < -2.0  # of -log 10 = -2.3 at best, however much is forgotten
    assert learnt.loss >= -2.303
    with torch.no_grad():
        for edit in learnt.edits:
            edit.apply_(hooked.model)
        share = float((hooked.model(forget[0][0]).argmax(1) == 3).double().mean())
        kept = float((hooked.model(rest[0][0]).argmax(1) == rest[0][1]).double().mean())
    assert share == 0
    assert kept >= 0.9


def test_updates_of_hidden_layers_do_what_was_learnt() -> None:
    hooked = attach(
        digits.load("vit", Path(__file__).parents[2] / "fixtures/digits_vit.safetensors")
    )
    draw = torch.Generator().manual_seed(1)
    axis = nn.functional.normalize(torch.randn(64, 1, generator=draw), dim=0)
    edits = [
        edit_at(hooked, "blocks.2.hook_mlp_out", LowRankMap(axis, axis, torch.ones(1))),  # a writer
        edit_at(hooked, "blocks.3.ln2.hook_normalized", Gate(axis.T, 3.0)),
    ]
    split = digits.load_digits()[1]
    x, labels = split.images[:12], split.labels[:12]
    learnt = learn_scales(hooked, edits, [(x, labels.flip(0))], row_blocks=2, l2=0.01)
    assert len(learnt.edits) == 2
    for edit in learnt.edits:
        assert edit.exactness is not None
        edit.apply_(hooked.model)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(hooked.model(x), labels.flip(0))
    pull = 0.005 * sum(float(scales.square().sum()) for scales in learnt.scales)
    assert float(loss) + pull == pytest.approx(learnt.loss, abs=1e-4)


def test_a_site_with_two_readers_has_a_scale_for_each(tiny: HookedModel) -> None:
    draw = torch.Generator().manual_seed(7)
    axis = torch.randn(6, 1, generator=draw)
    edit = edit_at(tiny, "both", LowRankMap(axis, axis, torch.zeros(1)))
    learnt = learn_scales(tiny, [edit], images_of(8))
    assert [scales.shape for scales in learnt.scales] == [(2, 1)]
    # The second layer does not reach the logits: nothing but the pull acts on its scale.
    assert float(learnt.scales[0][1]) == pytest.approx(0, abs=1e-4)
    assert {edit.targets[0].weight for edit in learnt.edits} == {"head.weight", "side.weight"}


def test_what_cannot_be_is_named(tiny: HookedModel, make_tiny: Callable[[], HookedModel]) -> None:
    edits, keep = edits_of(tiny), images_of()
    with pytest.raises(SalveError, match="at least one"):
        learn_scales(tiny, [], keep)
    with pytest.raises(SalveError, match="give keep="):
        learn_scales(tiny, edits)
    with pytest.raises(SalveError, match="above 0"):
        learn_scales(tiny, edits, keep, l2=0.0)
    with pytest.raises(SalveError, match="label 9"):
        learn_scales(tiny, edits, [(keep[0][0], torch.full((12,), 9))])
    with edits[0].applied(tiny.model), pytest.raises(SalveError, match="revert them first"):
        learn_scales(tiny, edits[1:], keep)
    other = make_tiny()
    with torch.no_grad():
        other.model.get_submodule("head").get_parameter("weight").mul_(2)
    with pytest.raises(SalveError, match="is not the weight"):
        learn_scales(other, edits, keep)
