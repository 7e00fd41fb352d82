"""Critical strengths of low-rank maps and of classifiers with one logit, against edited models."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from salve_plugin import (
    Activations,
    Edit,
    EditArtifact,
    Gate,
    HookedModel,
    LowRankMap,
    alpha_crit,
    attach,
    edit_at,
    record,
)
from salve_plugin.control.critical import CritGoal, alpha_crits
from salve_plugin.demo import digits
from salve_plugin.errors import InputError
from salve_plugin.share import evidence
from salve_plugin.site import HEAD_INPUT
from salve_plugin.validate.plots import alpha_crit_picture

RANK = 3


def eraser(hooked: HookedModel, rows: list[int] | None = None, seed: int = 0) -> Edit:
    """Return a low-rank map at the head with an offset, written elsewhere than it is read."""
    width = hooked.site(HEAD_INPUT).width
    draw = torch.Generator().manual_seed(seed)
    write, read = torch.randn(2, width, RANK, generator=draw) / width**0.5
    return edit_at(
        hooked, HEAD_INPUT, LowRankMap(write, read, torch.randn(RANK, generator=draw)), rows=rows
    )


def logits_at(hooked: HookedModel, acts: Activations, edit: Edit, amount: float) -> Tensor:
    """Return the logits by the map's definition, in float64: edited rows read x', others x."""
    weight, bias = (values.double() for values in hooked.unembed())
    operator = edit.operator
    assert isinstance(operator, LowRankMap)
    x = acts.tensor().double()
    reading = x @ operator.read.double() - operator.offset.double()
    changed = x - amount * reading @ operator.write.double().T
    logits = x @ weight.T + bias
    rows = slice(None) if edit.rows is None else list(edit.rows)
    logits[:, rows] = (changed @ weight.T + bias)[:, rows]
    return logits


def height_of(logits: Tensor, labels: Tensor, target: CritGoal, goal: Tensor) -> Tensor:
    """Return how far each image is from the target."""
    own = logits.gather(1, labels[:, None])[:, 0]
    if target == "flip":
        return own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return own - goal


@pytest.mark.parametrize("rows", [None, [3, 5]])
@pytest.mark.parametrize("target", ["zero", "fraction", "flip"])
def test_a_map_breaks_an_image_at_its_amount_and_never_before(
    digits_hooked: HookedModel, digits_acts: Activations, target: CritGoal, rows: list[int] | None
) -> None:
    edit = eraser(digits_hooked, rows, seed=3)
    crit = alpha_crit(digits_hooked, edit, digits_acts, target=target, fraction=0.3)
    labels = crit.labels
    before = logits_at(digits_hooked, digits_acts, edit, 0.0)
    goal = (0.3 if target == "fraction" else 0.0) * before.gather(1, labels[:, None])[:, 0]
    start = height_of(before, labels, target, goal)
    assert torch.equal(crit.values == 0, start <= 0)
    finite = (crit.values.isfinite() & (crit.values > 0)).nonzero()[:, 0]
    assert len(finite) > 5
    for image in finite[:20].tolist():
        for share, stands in ((0.5, True), (1 - 1e-9, True), (1 + 1e-9, False)):
            at = logits_at(digits_hooked, digits_acts, edit, share * float(crit.values[image]))
            height = height_of(
                at[image : image + 1], labels[image : image + 1], target, goal[image]
            )
            assert (float(height) > 0) is stands
    for amount in (0.5, 1.0, 30.0, 1000.0):
        later = height_of(logits_at(digits_hooked, digits_acts, edit, amount), labels, target, goal)
        assert bool((later[crit.values.isinf()] > 0).all())


def test_the_amount_is_what_with_strength_takes_and_belongs_to_the_family(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    edit = eraser(digits_hooked)
    assert (edit.strength, edit.with_strength(0.25).strength) == (1.0, 0.25)
    crit = alpha_crit(digits_hooked, edit, digits_acts, target="flip", against="predicted")
    assert crit.family == edit.family == edit.with_strength(0.25).family
    finite = crit.values.isfinite() & (crit.values > 0)
    assert torch.equal(crit.values[finite], crit.linear[finite])
    image = int(torch.where(finite, crit.values, torch.inf).argmin())
    x = digits_acts.tensor()[image : image + 1]
    for factor, stands in ((0.999, True), (1.001, False)):
        strong = edit.with_strength(factor * float(crit.values[image]))
        with strong.applied(digits_hooked):
            weight, bias = digits_hooked.unembed()
        assert (int((x @ weight.T + bias).argmax()) == int(crit.predicted[image])) is stands


def test_several_edits_in_one_pass_are_each_alone(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    width = digits_hooked.site(HEAD_INPUT).width
    first = edit_at(digits_hooked, HEAD_INPUT, Gate(torch.eye(width)[:1], 1.0))
    edits = [first, eraser(digits_hooked, [2])]
    for latent in range(1, 4):
        gate = Gate(torch.eye(width)[latent : latent + 2] * 1.0, 1.0)
        edits.append(replace(first, operator=gate))
    targets: tuple[CritGoal, ...] = ("fraction", "flip")
    for target in targets:
        together = alpha_crits(digits_hooked, edits, digits_acts, target=target)
        for edit, crit in zip(edits, together, strict=True):
            alone = alpha_crit(digits_hooked, edit, digits_acts, target=target)
            assert torch.equal(crit.values, alone.values)
            assert (crit.family, alone.family) == (edit.family, edit.family)
    with pytest.raises(InputError, match="at least one edit"):
        alpha_crits(digits_hooked, [], digits_acts)


@pytest.fixture(scope="module")
def binary() -> HookedModel:
    """A network with one logit."""
    torch.manual_seed(0)
    return attach(timm.create_model("resnet10t", num_classes=1).eval())


@pytest.fixture(scope="module")
def binary_acts(binary: HookedModel) -> Activations:
    images = torch.randn(24, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return record(binary, [(images, torch.zeros(24, dtype=torch.long))], progress=False)


@pytest.mark.parametrize("kind", ["gate", "map"])
@pytest.mark.parametrize("target", ["zero", "flip"])
def test_one_logit_flips_where_it_crosses_the_threshold(
    binary: HookedModel, binary_acts: Activations, kind: str, target: CritGoal
) -> None:
    width = binary.site(HEAD_INPUT).width
    unit = torch.nn.functional.normalize(
        torch.randn(1, width, generator=torch.Generator().manual_seed(2)), dim=1
    )
    edit = eraser(binary) if kind == "map" else edit_at(binary, HEAD_INPUT, Gate(unit, 1.0))
    weight, bias = (values.double() for values in binary.unembed())
    x = binary_acts.tensor().double()
    logits = (x @ weight.T + bias)[:, 0]
    threshold = float(logits.median()) + 1e-4
    crit = alpha_crit(
        binary,
        edit,
        binary_acts,
        target=target,
        against="predicted",
        threshold=threshold,
    )
    assert torch.equal(crit.predicted, (logits > threshold).long())
    assert crit.threshold == threshold
    finite = crit.values.isfinite().nonzero()[:, 0].tolist()
    assert len(finite) > 3
    for image in finite:
        for factor, stands in ((1 - 1e-7, True), (1 + 1e-7, False)):
            operator = edit.with_strength(factor * float(crit.values[image])).operator
            moved = operator.activation(x[image : image + 1], 1) @ weight.T + bias
            assert (int(moved > threshold) == int(crit.predicted[image])) is stands


def test_a_threshold_is_for_one_logit(
    digits_hooked: HookedModel, digits_acts: Activations, binary: HookedModel,
    binary_acts: Activations,
) -> None:  # fmt: skip
    with pytest.raises(InputError, match="one logit"):
        alpha_crit(digits_hooked, eraser(digits_hooked), digits_acts, threshold=0.5)
    with pytest.raises(InputError, match="finite"):
        alpha_crit(binary, eraser(binary), binary_acts, threshold=math.nan)


def test_a_maps_strengths_are_stored_and_drawn_and_a_threshold_is_not_lost(
    digits_hooked: HookedModel, digits_acts: Activations, tmp_path: Path
) -> None:
    edit = eraser(digits_hooked, [3, 5])
    crit = alpha_crit(digits_hooked, edit, digits_acts, target="flip")
    assert alpha_crit_picture(crit, edit).startswith(b"\x89PNG")
    folder = tmp_path / "artifact"
    labels = list(digits.CLASSES)
    artifact = EditArtifact.of(digits_hooked, edit, alpha_crit=crit, labels=labels)
    artifact.save_pretrained(folder)
    back = EditArtifact.from_pretrained(folder).alpha_crit
    assert back is not None
    assert torch.equal(back.values, crit.values)
    assert "amount 1 − λ" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="threshold"):
        evidence.tensors(replace(crit, threshold=0.5))
