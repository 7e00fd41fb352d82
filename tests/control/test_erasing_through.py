"""Several sites jointly: each edit fitted with the earlier ones in place, no trace left behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import (
    Edit,
    HookedModel,
    SalveError,
    attach,
    edit_at,
    erase,
    erase_through,
    find_concept,
    record,
    status,
)
from salve_plugin.control.erasers import PairMoments, repair
from salve_plugin.control.erasing import eraser_map
from salve_plugin.control.operators import LowRankMap
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[1] / "fixtures"
SITES = {
    "ResNet": ["blocks.1.hook_resid_post", "unembed.hook_in"],
    "VisionTransformer": [
        "blocks.1.hook_mlp_out", "blocks.3.ln2.hook_normalized", "unembed.hook_in"
    ],
}  # fmt: skip


def with_bar(network: Literal["resnet", "vit"], split: digits.Split) -> SimpleNamespace:
    hooked = attach(digits.load(network, FIXTURES / f"digits_{network}.safetensors"))
    plain = split.images[:40]
    marked = plain.clone()
    marked[:, :, :3] = marked.max()
    return SimpleNamespace(hooked=hooked, plain=plain, marked=marked)


@pytest.fixture(scope="module", params=["resnet", "vit"])
def barred(request: pytest.FixtureRequest, digits_test: digits.Split) -> SimpleNamespace:
    """Both networks, with digits that have a bright bar at their upper edge or not."""
    return with_bar(request.param, digits_test)


@pytest.fixture(scope="module")
def vit(digits_test: digits.Split) -> SimpleNamespace:
    """The ViT alone, for what does not depend on the network."""
    return with_bar("vit", digits_test)


def pair(barred: SimpleNamespace) -> tuple[Tensor, Tensor]:
    return barred.marked, barred.plain


def sites_of(hooked: HookedModel) -> list[str]:
    return SITES[type(hooked.model).__name__]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def loader(images: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images, torch.zeros(len(images), dtype=torch.int64))]


@pytest.fixture(scope="module")
def joint(barred: SimpleNamespace) -> tuple[Edit, ...]:
    """Edits of all sites, which were named in the wrong order."""
    return erase_through(
        barred.hooked, *pair(barred), sites_of(barred.hooked)[::-1],
        "directional_ablation", name="bar",
    )  # fmt: skip


def test_the_sites_come_by_depth_and_the_model_keeps_every_bit(
    barred: SimpleNamespace, joint: tuple[Edit, ...]
) -> None:
    model = barred.hooked.model
    assert [edit.site.name for edit in joint] == sites_of(barred.hooked)
    before = bits(model)
    for edit in joint:
        edit.apply_(model)
    assert [entry.edit for entry in status(model).applied] == list(joint)
    for edit in joint:
        edit.revert_(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_every_site_is_fitted_with_the_earlier_edits_in_place(
    barred: SimpleNamespace, joint: tuple[Edit, ...]
) -> None:
    hooked, model = barred.hooked, barred.hooked.model
    joint[0].apply_(model)
    try:
        second = sites_of(hooked)[1]
        recordings = [
            record(hooked, loader(images), second, progress=False) for images in pair(barred)
        ]
        concept = find_concept(recordings[0], without=recordings[1])
        expected, _ = eraser_map(concept, "directional_ablation")
    finally:
        joint[0].revert_(model)
    operator = joint[1].operator
    assert isinstance(operator, LowRankMap)
    torch.testing.assert_close(operator.read, expected.read, rtol=1e-4, atol=1e-6)
    alone = erase_through(
        hooked, *pair(barred), [second], "directional_ablation"
    )[0].operator  # fmt: skip
    assert isinstance(alone, LowRankMap)
    assert not torch.allclose(alone.read, expected.read, rtol=1e-2, atol=1e-3)


def test_one_site_is_what_erase_makes(vit: SimpleNamespace) -> None:
    (edit,) = erase_through(vit.hooked, *pair(vit), ["unembed.hook_in"])
    recordings = [record(vit.hooked, loader(images), progress=False) for images in pair(vit)]
    expected = erase(vit.hooked, find_concept(recordings[0], without=recordings[1]))
    for name, tensor in expected.operator.tensors.items():
        torch.testing.assert_close(edit.operator.tensors[name], tensor, rtol=1e-5, atol=1e-7)


def test_depth_removes_as_much_as_a_held_out_probe_finds(vit: SimpleNamespace) -> None:
    marked, plain = pair(vit)
    faint = plain + 0.1 * (marked - plain)
    (edit,) = erase_through(vit.hooked, faint, plain, ["unembed.hook_in"], profile="depth")
    recordings = [record(vit.hooked, loader(images), progress=False) for images in (faint, plain)]
    evidence = find_concept(recordings[0], without=recordings[1]).evidence
    assert evidence is not None
    assert isinstance(edit.operator, LowRankMap)
    assert 0.5 < evidence.auc < 1
    assert edit.operator.scale == pytest.approx(2 - 2 * evidence.auc, abs=1e-6)


def test_repair_goes_back_to_the_unedited_network(vit: SimpleNamespace) -> None:
    hooked, model = vit.hooked, vit.hooked.model
    sites = sites_of(hooked)[::2]
    edits = erase_through(hooked, *pair(vit), sites, "repair", rank=2)
    marked, plain = pair(vit)
    goal = record(hooked, loader(plain), sites[1], progress=False).tensor()
    with torch.no_grad():
        wanted, before = model(plain), model(marked)
        with edits[0].applied(model):
            seen = record(hooked, loader(marked), sites[1], progress=False).tensor()
            with edits[1].applied(model):
                after = model(marked)
    # Marked pictures as the first edit leaves them, plain ones as no edit has touched them.
    expected = repair(PairMoments.of([(seen, goal)]), rank=2)
    x = seen.double()
    torch.testing.assert_close(
        edits[1].operator.activation(x, 1), expected.activation(x, 1), rtol=1e-4, atol=1e-4
    )
    assert float((after - wanted).norm()) < 0.6 * float((before - wanted).norm())


def test_each_site_can_have_a_role_of_its_own(vit: SimpleNamespace) -> None:
    first = "blocks.1.hook_mlp_out"
    edits = erase_through(
        vit.hooked, *pair(vit), [first, "unembed.hook_in"], role={first: "writer"}
    )
    assert [edit.role for edit in edits] == ["writer", "reader"]
    with pytest.raises(SalveError):  # nothing is known to write the classifier's input alone
        erase_through(vit.hooked, *pair(vit), [first, "unembed.hook_in"], role="writer")


def test_a_layer_is_another_name_for_its_site(vit: SimpleNamespace) -> None:
    first = vit.hooked.sites["blocks.1.hook_mlp_out"]
    edits = erase_through(
        vit.hooked, *pair(vit), ["unembed.hook_in", first.module], role={first.module: "writer"}
    )
    assert [edit.site.name for edit in edits] == [first.name, "unembed.hook_in"]
    assert edits[0].role == "writer"
    with pytest.raises(SalveError, match="twice"):
        erase_through(vit.hooked, *pair(vit), [first.name, first.module])


def test_where_no_probe_beats_a_coin_there_is_no_edit(vit: SimpleNamespace) -> None:
    plain = vit.plain
    assert erase_through(vit.hooked, plain, plain, ["unembed.hook_in"], profile="depth") == ()
    with pytest.raises(SalveError, match="do not covary"):
        erase_through(vit.hooked, plain, plain, ["unembed.hook_in"])


def test_an_error_half_way_takes_the_edits_off_again(barred: SimpleNamespace) -> None:
    model = barred.hooked.model
    before = bits(model)
    sites = [*sites_of(barred.hooked)[:1], "blocks.3.hook_resid_post"]  # nothing takes that over
    with pytest.raises(SalveError, match=r"blocks\.3\.hook_resid_post"):
        erase_through(
            barred.hooked, *pair(barred), sites, "directional_ablation"
        )  # fmt: skip
    assert not status(model).applied
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_an_edit_that_was_on_the_model_stays_on_it(vit: SimpleNamespace) -> None:
    hooked, model = vit.hooked, vit.hooked.model
    width = hooked.sites["unembed.hook_in"].width
    direction = torch.ones(width, 1) / width**0.5
    own = edit_at(hooked, "unembed.hook_in", LowRankMap(direction, direction, torch.zeros(1), 0.5))
    with own.applied(model):
        erase_through(hooked, *pair(vit), sites_of(hooked)[:1], "directional_ablation")
        assert [entry.edit for entry in status(model).applied] == [own]


def test_what_cannot_be_is_named(vit: SimpleNamespace) -> None:
    hooked, images = vit.hooked, pair(vit)
    with pytest.raises(SalveError, match="twice"):
        erase_through(hooked, *images, ["unembed.hook_in"] * 2)
    with pytest.raises(SalveError, match="no site 'nowhere'"):
        erase_through(hooked, *images, ["nowhere"])
    with pytest.raises(SalveError, match="list of at least one"):
        erase_through(hooked, *images, "unembed.hook_in")
    with pytest.raises(SalveError, match="not among"):
        erase_through(hooked, *images, ["unembed.hook_in"], role={"nowhere": "reader"})
    with pytest.raises(SalveError, match="dictionary of its own"):
        erase_through(hooked, *images, ["unembed.hook_in"], "fold")
    with pytest.raises(SalveError, match="one class an image"):
        erase_through(hooked, *images, ["unembed.hook_in"], labels=torch.zeros(3).long())
    batches = loader(images[0])
    with pytest.raises(SalveError, match="its own labels"):
        erase_through(hooked, batches, batches, ["unembed.hook_in"], labels=torch.zeros(3).long())
    with pytest.raises(SalveError, match="read once"):
        erase_through(hooked, iter(batches), batches, ["unembed.hook_in"])
