"""What one more edit does to a classifier that carries edits: computed from the pristine weight."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import (
    Activations,
    Dictionary,
    EnhanceClass,
    Gate,
    HookedModel,
    LowRankMap,
    LowRankUpdate,
    MoveDecision,
    SuppressClass,
    alpha_crit,
    attach,
    choose,
    edit_at,
    evaluate,
    record,
)
from salve_plugin.control.choosing.head import JudgedHead, edited_head
from salve_plugin.control.layered_head import LayeredHead
from salve_plugin.control.operators import Operator
from salve_plugin.control.strength import critical_strength
from salve_plugin.discover.learners import create
from salve_plugin.errors import InputError
from salve_plugin.site import HEAD_INPUT

WIDTH = 6
FORMS = ("gate", "map", "update")


class Plain(nn.Module):
    """A linear head, and nothing before it."""

    def __init__(self, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Identity()
        self.head = nn.Linear(WIDTH, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits


def operator(form: str, seed: int, classes: int) -> Operator:
    draw = torch.Generator().manual_seed(seed)
    direction = torch.randn(WIDTH, 1, generator=draw).double()
    direction /= direction.norm()
    if form == "gate":
        return Gate(direction.T, 0.7)
    if form == "map":
        return LowRankMap(direction, direction, torch.ones(1).double(), 0.3)
    left = torch.randn(classes, 1, generator=draw).double()
    return LowRankUpdate(left, direction, torch.randn(classes, generator=draw).double())


def network(
    path: Path, classes: int = 3, kind: torch.dtype = torch.float64, *, bias: bool = True
) -> tuple[HookedModel, Activations, list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(60, WIDTH, generator=draw).relu()
    x[:, 0] = 1.0  # which a mask can read in the place of a bias
    hooked = attach(
        Plain(classes, bias=bias).to(kind), head="head", probe=torch.ones(2, WIDTH, dtype=kind)
    )
    with torch.no_grad():
        logits = hooked.model(x.to(kind)).float()
        noise = 0.3 * torch.randn(logits.shape, generator=draw)
        labels = (logits + noise).argmax(1) if classes > 1 else (logits + noise)[:, 0].gt(0).long()
    loader = [(x.to(kind), labels)]
    return hooked, record(hooked, loader, folder=path, progress=False), loader


@pytest.mark.parametrize("form", ["gate", "map"])
@pytest.mark.parametrize("present", [("map",), ("update",), FORMS])
@pytest.mark.parametrize("classes", [1, 3])
def test_critical_strengths_are_those_of_the_model_with_both(
    form: str, present: tuple[str, ...], classes: int, tmp_path: Path
) -> None:
    hooked, acts, ((x, _),) = network(tmp_path / "acts", classes)
    for seed, each in enumerate(present):
        rows = [0] if classes == 1 or seed == 1 else None
        first = operator(each, seed, len(rows or range(classes)))
        edit_at(hooked, HEAD_INPUT, first, rows=rows).apply_(hooked)
    edit = edit_at(hooked, HEAD_INPUT, operator(form, 9, classes))
    crit = alpha_crit(hooked, edit, acts, target="flip", against="predicted")
    broken = (crit.values > 0) & crit.values.isfinite()
    assert bool(broken.any())
    for image in broken.nonzero()[:3, 0].tolist():
        for share in (1 - 1e-6, 1.0):
            strength = share * float(crit.values[image])
            with edit.with_strength(strength).applied(hooked), torch.no_grad():
                logits = hooked.model(x[image : image + 1])[0]
            sides = logits if classes > 1 else torch.cat([-logits, logits]) / 2
            mine = torch.arange(len(sides)) == crit.predicted[image]
            lead = sides[mine].sum() - sides[~mine].max()
            assert float(lead) > 0 if share < 1 else abs(float(lead)) < 1e-9


@pytest.mark.parametrize("present", [(), FORMS])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_candidates_are_judged_by_the_bits_that_applying_writes(
    form: str, kind: torch.dtype, present: tuple[str, ...], tmp_path: Path
) -> None:
    hooked, acts, _ = network(tmp_path / "acts", kind=kind)
    for seed, each in enumerate(present):
        edit_at(hooked, HEAD_INPUT, operator(each, seed, 3)).apply_(hooked)
    edit = edit_at(hooked, HEAD_INPUT, operator(form, 9, 3))
    weight, bias = edited_head(JudgedHead.of(hooked, (acts,)), edit)
    with edit.applied(hooked):
        expected = hooked.unembed()
        assert torch.equal(weight, expected[0].float())
        assert torch.equal(bias, expected[1].float())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "goal",
    [
        SuppressClass(0, max_harm=0.2),
        EnhanceClass(0, max_harm=0.2),
        MoveDecision(0, 1, max_harm=0.2),
    ],
)
def test_goals_about_a_class_need_no_bias(
    goal: SuppressClass | EnhanceClass | MoveDecision, bias: bool, tmp_path: Path
) -> None:
    hooked, acts, loader = network(tmp_path / "acts", kind=torch.float32, bias=bias)
    before = evaluate(hooked, loader)
    choice = choose(hooked, goal, acts)
    assert any(one.is_control for one in choice.tried)
    for one in choice.tried:
        with one.edit.applied(hooked):
            after = evaluate(hooked, loader)
        losses = (before.accuracy - after.accuracy)[1:]
        assert one.harm == pytest.approx(float(losses.max()))


def test_a_head_with_neither_bias_nor_constant_is_enhanced_by_latents_or_not_at_all(
    tmp_path: Path,
) -> None:
    hooked, _, ((x, _),) = network(tmp_path / "first", kind=torch.float32, bias=False)
    x = torch.cat([x, -x])
    labels = hooked.model(x).argmax(1)
    acts = record(hooked, [(x, labels)], folder=tmp_path / "acts", progress=False)
    choice = choose(hooked, EnhanceClass(0, min_accuracy=1.0), acts)
    assert choice.chosen.method == "no edit"


def test_latents_that_do_nothing_leave_the_mask_and_what_is_reached_already(tmp_path: Path) -> None:
    hooked, _, ((x, _),) = network(tmp_path / "first", kind=torch.float32)
    atoms = torch.zeros(2, WIDTH)
    atoms[:, -1] = 1  # a feature that no row of the head reads
    with torch.no_grad():
        hooked.model.get_parameter("head.weight")[:, -1] = 0
    labels = hooked.model(x).argmax(1)
    acts = record(hooked, [(x, labels)], folder=tmp_path / "acts", progress=False)
    label = int(labels.bincount().argmax())
    parts = {"atoms": atoms, "encoder_weight": atoms, "encoder_bias": torch.zeros(2)}
    parts["decoder_bias"] = torch.zeros(WIDTH)
    dictionary = Dictionary(parts, create("l1", {}), acts.site)
    assert (
        choose(hooked, SuppressClass(label, rows=None), acts, dictionary=dictionary).chosen.method
        == "mask"
    )
    goal = SuppressClass(label, by="latents", rows=None)
    with pytest.raises(InputError, match="no strength of any of 2 latents flips an image"):
        choose(hooked, goal, acts, dictionary=dictionary)
    with choose(hooked, SuppressClass(label), acts).edit.applied(hooked):
        choice = choose(hooked, goal, acts, dictionary=dictionary)
    assert choice.met


def test_a_gate_alone_is_what_the_closed_form_says(tmp_path: Path) -> None:
    hooked, acts, _ = network(tmp_path / "acts")
    edit = edit_at(hooked, HEAD_INPUT, operator("gate", 9, 3))
    weight, bias = hooked.unembed()
    crit = alpha_crit(hooked, edit, acts, classes=[1])
    mine = acts.tensor()[acts.labels() == 1]
    reach = edit.gate.reach
    assert torch.equal(crit.values, critical_strength(weight[1], float(bias[1]), reach, mine))


def test_a_head_that_takes_no_edit_carries_none() -> None:
    model = Plain(3)
    nn.utils.parametrizations.weight_norm(model.head)
    hooked = attach(model.eval(), head="head", probe=torch.randn(2, WIDTH))
    site = hooked.site(HEAD_INPUT)
    layers = LayeredHead.of(hooked, site, hooked.unembed(site)[0].double())
    assert layers.is_plain
    torch.testing.assert_close(layers.scaled, model.head.weight.detach().double())
