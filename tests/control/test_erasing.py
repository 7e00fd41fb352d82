"""Erasing a concept from trained networks: for good, exactly, and no more than was asked."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from salve_plugin import (
    Dictionary,
    Edit,
    SalveError,
    attach,
    direction_concept,
    erase,
    find_concept,
    forgetting,
    record,
)
from salve_plugin.control.erasing import Eraser
from salve_plugin.demo import digits
from salve_plugin.errors import InputError, UnsupportedModelError

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("eraser", ["leace", "mean_ablation"])
def test_the_edited_head_no_longer_tells_marked_from_plain(
    patched: SimpleNamespace, eraser: Eraser
) -> None:
    assert patched.concept.evidence.is_real
    edit = erase(patched.hooked, patched.concept, eraser)
    model = patched.hooked.model
    with torch.no_grad():
        before = (model(patched.marked) - model(patched.plain)).mean(0).norm()
        with edit.applied(model):
            after = (model(patched.marked) - model(patched.plain)).mean(0).norm()
    assert float(after) < 0.1 * float(before)
    assert "bar" in edit.provenance.note


def test_named_rows_change_and_others_keep_every_bit(patched: SimpleNamespace) -> None:
    edit = erase(patched.hooked, patched.concept, rows=[2, 7])
    model = patched.hooked.model
    pristine = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(patched.plain)
        with edit.applied(model):
            after = model(patched.plain)
    moved = (before != after).any(0)
    assert moved.nonzero()[:, 0].tolist() == [2, 7]
    assert all(tensor.equal(pristine[name]) for name, tensor in model.state_dict().items())


def test_a_hidden_site_is_erased_and_measured(patched: SimpleNamespace) -> None:
    with_ = patched.recorded[patched.hidden, "with"]
    concept = find_concept(with_, without=patched.recorded[patched.hidden, "without"])
    # Through the origin: padded positions of the ResNet's kernels see no offset.
    edit = erase(patched.hooked, concept, "directional_ablation")
    assert edit.exactness is not None
    assert edit.exactness.difference <= 1e-5
    assert edit.exactness.effect > 0


def test_a_scale_in_between_does_part_of_it(patched: SimpleNamespace) -> None:
    model = patched.hooked.model
    logits = {}
    with torch.no_grad():
        for scale in (1.0, 0.5, 0.0):
            with erase(patched.hooked, patched.concept, scale=scale).applied(model):
                logits[scale] = model(patched.plain).double()
    half = (logits[1.0] + logits[0.0]) / 2
    torch.testing.assert_close(logits[0.5], half, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eraser", get_args(Eraser))
def test_every_eraser_makes_an_edit_of_a_sparse_probe(
    patched: SimpleNamespace, make_dictionary: Callable[..., Dictionary], eraser: Eraser
) -> None:
    with_ = patched.recorded["unembed.hook_in", "with"]
    dictionary = make_dictionary(with_.site, 32)
    concept = find_concept(
        with_, without=patched.recorded["unembed.hook_in", "without"], dictionary=dictionary,
        n_latents=4,
    )  # fmt: skip
    edit = erase(patched.hooked, concept, eraser)
    with torch.no_grad(), edit.applied(patched.hooked.model):
        assert bool(patched.hooked.model(patched.plain).isfinite().all())


def test_where_convolutions_are_padded_leace_goes_through_zero(digits_test: digits.Split) -> None:
    hooked = attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    site = "blocks.0.hook_resid_post"
    has = torch.arange(len(digits_test.labels)) % 3 == 0
    images = digits_test.images.clone()
    images[has, :, :3] = images.max()
    loader = [(images, digits_test.labels)]
    concept = find_concept(record(hooked, loader, site, progress=False), has)
    with pytest.raises(UnsupportedModelError, match="centre='origin'"):
        erase(hooked, concept)
    with pytest.raises(InputError, match="no form without an offset"):
        erase(hooked, concept, "wiener", centre="origin")

    def told_and_right(edit: Edit) -> tuple[float, float]:
        known = forgetting(hooked, edit, loader, has=has, sites=[site], steps=[0])
        with torch.no_grad():
            right = edit.edited(hooked.model)(images).argmax(1) == digits_test.labels
        return known.recovery[0].after.accuracy, float(right.double().mean())

    least, shifting = (
        told_and_right(erase(hooked, concept, eraser, centre="origin"))
        for eraser in ("leace", "directional_ablation")
    )
    assert least[0] < 0.6
    assert least[1] > shifting[1] + 0.05


def test_what_an_eraser_needs_is_named(patched: SimpleNamespace) -> None:
    with_ = patched.recorded["unembed.hook_in", "with"]
    direction = direction_concept(with_, torch.ones(with_.width))
    with pytest.raises(SalveError, match="dictionary="):
        erase(patched.hooked, direction, "fold")
    another = digits.load("resnet", FIXTURES / "digits_resnet.safetensors")
    with torch.no_grad():
        next(another.parameters()).mul_(1.5)
    with pytest.raises(SalveError):
        erase(attach(another), direction)
