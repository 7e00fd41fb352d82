"""Several sites jointly: each edit fitted with the earlier ones in place, no trace left behind."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import (
    Edit,
    HookedModel,
    SalveError,
    edit_at,
    erase,
    erase_through,
    find_concept,
    record,
    status,
)
from salve_plugin.control.erasing import eraser_map
from salve_plugin.control.operators import LowRankMap

COUNT = 72
SITES = {
    "ResNet": ["blocks.1.hook_resid_post", "unembed.hook_in"],
    "VisionTransformer": [
        "blocks.1.hook_mlp_out", "blocks.3.ln2.hook_normalized", "unembed.hook_in"
    ],
}  # fmt: skip


def pair(patched: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """Return the first images with and without the bar; all of them would only take longer."""
    return patched.marked[:COUNT], patched.plain[:COUNT]


def sites_of(hooked: HookedModel) -> list[str]:
    return SITES[type(hooked.model).__name__]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def loader(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images, torch.zeros(len(images), dtype=torch.int64))]


@pytest.fixture(scope="module")
def joint(patched: SimpleNamespace) -> tuple[Edit, ...]:
    """Edits of all sites, which were named in the wrong order."""
    return erase_through(
        patched.hooked, *pair(patched), sites_of(patched.hooked)[::-1],
        "directional_ablation", name="bar",
    )  # fmt: skip


def test_the_sites_come_by_depth_and_the_model_keeps_every_bit(
    patched: SimpleNamespace, joint: tuple[Edit, ...]
) -> None:
    model = patched.hooked.model
    assert [edit.site.name for edit in joint] == sites_of(patched.hooked)
    before = bits(model)
    for edit in joint:
        edit.apply_(model)
    assert [entry.edit for entry in status(model).applied] == list(joint)
    for edit in joint:
        edit.revert_(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_every_site_is_fitted_with_the_earlier_edits_in_place(
    patched: SimpleNamespace, joint: tuple[Edit, ...]
) -> None:
    hooked, model = patched.hooked, patched.hooked.model
    joint[0].apply_(model)
    try:
        second = sites_of(hooked)[1]
        recordings = [
            record(hooked, loader(images), second, progress=False) for images in pair(patched)
        ]
        concept = find_concept(recordings[0], without=recordings[1])
        expected, _ = eraser_map(concept, "directional_ablation")
    finally:
        joint[0].revert_(model)
    operator = joint[1].operator
    assert isinstance(operator, LowRankMap)
    torch.testing.assert_close(operator.read, expected.read, rtol=1e-4, atol=1e-6)
    alone = erase_through(
        hooked, *pair(patched), [second], "directional_ablation"
    )[0].operator  # fmt: skip
    assert isinstance(alone, LowRankMap)
    assert not torch.allclose(alone.read, expected.read, rtol=1e-2, atol=1e-3)


def test_one_site_is_what_erase_makes(patched: SimpleNamespace) -> None:
    (edit,) = erase_through(patched.hooked, *pair(patched), ["unembed.hook_in"])
    recordings = [
        record(patched.hooked, loader(images), progress=False) for images in pair(patched)
    ]
    expected = erase(patched.hooked, find_concept(recordings[0], without=recordings[1]))
    for name, tensor in expected.operator.tensors.items():
        torch.testing.assert_close(edit.operator.tensors[name], tensor, rtol=1e-5, atol=1e-7)


def test_depth_removes_as_much_as_a_held_out_probe_finds(patched: SimpleNamespace) -> None:
    marked, plain = pair(patched)
    faint = plain + 0.1 * (marked - plain)
    (edit,) = erase_through(patched.hooked, faint, plain, ["unembed.hook_in"], profile="depth")
    recordings = [
        record(patched.hooked, loader(images), progress=False) for images in (faint, plain)
    ]
    evidence = find_concept(recordings[0], without=recordings[1]).evidence
    assert evidence is not None
    assert isinstance(edit.operator, LowRankMap)
    assert 0.5 < evidence.auc < 1
    assert edit.operator.scale == pytest.approx(2 - 2 * evidence.auc, abs=1e-6)


def test_repair_goes_back_to_the_unedited_network(patched: SimpleNamespace) -> None:
    hooked, model = patched.hooked, patched.hooked.model
    sites = sites_of(hooked)
    if sites[0] == "blocks.1.hook_resid_post":
        sites = ["unembed.hook_in"]  # padded kernels see no offset
    edits = erase_through(hooked, *pair(patched), sites, "repair", rank=2)
    with torch.no_grad():
        marked, plain = pair(patched)
        goal, before = model(plain), model(marked)
        for edit in edits:
            edit.apply_(model)
        after = model(marked)
        for edit in edits:
            edit.revert_(model)
    assert float((after - goal).norm()) < 0.6 * float((before - goal).norm())


def test_an_error_half_way_takes_the_edits_off_again(patched: SimpleNamespace) -> None:
    model = patched.hooked.model
    before = bits(model)
    sites = [*sites_of(patched.hooked)[:1], "blocks.3.hook_resid_post"]  # nothing takes that over
    with pytest.raises(SalveError, match=r"blocks\.3\.hook_resid_post"):
        erase_through(
            patched.hooked, *pair(patched), sites, "directional_ablation"
        )  # fmt: skip
    assert not status(model).applied
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_an_edit_that_was_on_the_model_stays_on_it(patched: SimpleNamespace) -> None:
    hooked, model = patched.hooked, patched.hooked.model
    width = hooked.sites["unembed.hook_in"].width
    direction = torch.ones(width, 1) / width**0.5
    own = edit_at(hooked, "unembed.hook_in", LowRankMap(direction, direction, torch.zeros(1), 0.5))
    with own.applied(model):
        erase_through(hooked, *pair(patched), sites_of(hooked)[:1], "directional_ablation")
        assert [entry.edit for entry in status(model).applied] == [own]


def test_what_cannot_be_is_named(patched: SimpleNamespace) -> None:
    hooked, images = patched.hooked, pair(patched)
    with pytest.raises(SalveError, match="twice"):
        erase_through(hooked, *images, ["unembed.hook_in"] * 2)
    with pytest.raises(SalveError, match="no site 'nowhere'"):
        erase_through(hooked, *images, ["nowhere"])
    with pytest.raises(SalveError, match="list of at least one"):
        erase_through(hooked, *images, "unembed.hook_in")
    with pytest.raises(SalveError, match="dictionary of its own"):
        erase_through(hooked, *images, ["unembed.hook_in"], "fold")
    with pytest.raises(SalveError, match="one class an image"):
        erase_through(hooked, *images, ["unembed.hook_in"], labels=torch.zeros(3).long())
    batches = loader(images[0])
    with pytest.raises(SalveError, match="its own labels"):
        erase_through(hooked, batches, batches, ["unembed.hook_in"], labels=torch.zeros(3).long())
    with pytest.raises(SalveError, match="read once"):
        erase_through(hooked, iter(batches), batches, ["unembed.hook_in"])
