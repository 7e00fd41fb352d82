"""MEMIT in real networks: several keys, several layers, and what the amount of it means."""

from pathlib import Path

import pytest
import torch
from layer_updates import draw, weight_after
from torch import Tensor

from salve_plugin import Activations, Edit, HookedModel, attach, class_association, memit, rome
from salve_plugin.demo import digits
from salve_plugin.errors import InputError
from salve_plugin.hooks import reading
from salve_plugin.site import HEAD_INPUT

AT = "blocks.3.hook_resid_post"
SITES = [f"blocks.{block}.mlp.hook_post" for block in (1, 2, 3)]


@pytest.fixture(scope="module")
def vit() -> HookedModel:
    path = Path(__file__).parents[2] / "fixtures" / "digits_vit.safetensors"
    return attach(digits.load("vit", path))


@pytest.fixture(scope="module")
def moments(vit: HookedModel, digits_test: digits.Split) -> list[Tensor]:
    sites = [vit.sites[site] for site in SITES]
    with torch.no_grad(), reading(vit.model, sites) as activations:
        vit.model(digits_test.images)
    rows = [site.rows(activations[site.name]).double() for site in sites]
    return [own.T @ own / len(own) for own in rows]


def mean_at(hooked: HookedModel, images: Tensor) -> Tensor:
    site = hooked.sites[AT]
    with torch.no_grad(), reading(hooked.model, [site]) as activations:
        hooked.model(images)
    return site.rows(activations[AT]).double().mean(0)


def test_several_classes_are_written_over_at_the_head(
    digits_hooked: HookedModel, digits_acts: Activations, digits_test: digits.Split
) -> None:
    pairs = [class_association(digits_hooked, label, digits_acts) for label in (3, 5, 8)]
    keys, values = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    (edit,) = memit(digits_hooked, HEAD_INPUT, keys, values, digits_acts, preservation=0.0)
    path = next(iter(digits_hooked.heads))
    bias = digits_hooked.unembed()[1].double()
    written = keys @ weight_after(digits_hooked, edit, path).T + bias
    torch.testing.assert_close(written, values, rtol=1e-4, atol=1e-4)
    with torch.no_grad(), edit.applied(digits_hooked):
        predicted = digits_hooked(digits_test.images).argmax(1)
    own = torch.isin(digits_test.labels, torch.tensor([3, 5, 8]))
    assert float((predicted == digits_test.labels)[own].double().mean()) < 0.15
    assert float((predicted == digits_test.labels)[~own].double().mean()) > 0.9


def test_one_key_written_exactly_is_rome(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    key, value = class_association(digits_hooked, 3, digits_acts)
    (edit,) = memit(
        digits_hooked, HEAD_INPUT, key[None], value[None], digits_acts, preservation=0.0
    )
    other = rome(digits_hooked, HEAD_INPUT, key, value, digits_acts)
    path = next(iter(digits_hooked.heads))
    torch.testing.assert_close(
        weight_after(digits_hooked, edit, path), weight_after(digits_hooked, other, path)
    )


def test_edits_that_are_applied_make_no_difference(
    vit: HookedModel, moments: list[Tensor], digits_test: digits.Split
) -> None:
    images = digits_test.images[digits_test.labels == 3]
    values = mean_at(vit, digits_test.images[digits_test.labels == 8])[None]

    def written() -> tuple[Edit, ...]:
        return memit(vit, SITES, [images], values, moments, at=AT)

    without = written()
    with without[0].applied(vit), without[2].applied(vit):
        assert written() == without


def test_layers_share_the_change_and_add_up_to_it(
    vit: HookedModel, moments: list[Tensor], digits_test: digits.Split
) -> None:
    threes, fives = (digits_test.images[digits_test.labels == label] for label in (3, 5))
    before = torch.stack([mean_at(vit, threes), mean_at(vit, fives)])
    eight = mean_at(vit, digits_test.images[digits_test.labels == 8])
    values = torch.stack([eight, before[1]])  # threes become eights, fives stay
    state = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    missing = []
    for amount in (1e-9, 0.05, 1e6):
        edits = memit(vit, SITES, [threes, fives], values, moments, at=AT, preservation=amount)
        assert all(torch.equal(t, state[n]) for n, t in vit.model.state_dict().items())
        assert [edit.site.name for edit in edits] == SITES
        for edit in reversed(edits):  # they compose in any order
            edit.apply_(vit)
        after = torch.stack([mean_at(vit, threes), mean_at(vit, fives)])
        with torch.no_grad():
            predicted = vit(threes).argmax(1)
        for edit in edits:
            edit.revert_(vit)
        missing.append(float((values - after).norm() / (values - before).norm()))
        if amount < 1:
            assert float((predicted == 3).double().mean()) < 0.8
    assert missing[0] < 1e-4
    assert missing[1] < 0.1
    assert missing[2] == pytest.approx(1, abs=1e-3)


def test_every_layer_makes_its_part(
    vit: HookedModel, moments: list[Tensor], digits_test: digits.Split
) -> None:
    threes = digits_test.images[digits_test.labels == 3]
    before = mean_at(vit, threes)
    step = draw(0, 64) / 4
    edits = memit(vit, SITES, [threes], (before + step)[None], moments, at=AT, preservation=1e-9)
    missing = []
    for edit in edits:
        edit.apply_(vit)
        missing.append(float((before + step - mean_at(vit, threes)).norm() / step.norm()))
    for edit in edits:
        edit.revert_(vit)
    # Later blocks react to what was written before them, so only the last layer hits exactly.
    assert 1 > missing[0] > missing[1] > missing[2]
    assert missing[2] < 1e-4


def test_a_layer_scale_on_the_way_is_made_up_for(digits_test: digits.Split) -> None:
    from timm.models.vision_transformer import VisionTransformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=32, patch_size=8, in_chans=1, num_classes=10, embed_dim=16, depth=2,
            num_heads=2, init_values=0.01,
        ).eval()  # fmt: skip
    hooked, images = attach(model), digits_test.images[:30]
    assert any(site.affine for site in hooked.sites.values())
    sites, at = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"], "blocks.1.hook_resid_post"
    moments = [torch.eye(64).double()] * 2
    with torch.no_grad(), reading(model, [hooked.sites[at]]) as activations:
        model(images)
    before = hooked.sites[at].rows(activations[at]).double().mean(0)
    values = (before + draw(0, 16) / 10)[None]
    for edit in memit(hooked, sites, [images], values, moments, at=at, preservation=1e-9):
        edit.apply_(hooked)
    with torch.no_grad(), reading(model, [hooked.sites[at]]) as activations:
        model(images)
    after = hooked.sites[at].rows(activations[at]).double().mean(0)
    assert float((values[0] - after).norm()) < 1e-3 * float((values[0] - before).norm())


def test_bad_input_is_named(
    vit: HookedModel, moments: list[Tensor], digits_test: digits.Split, untyped: None
) -> None:
    images, keys, values = [digits_test.images[:3]], draw(0, 2, 256), draw(1, 2, 64)
    for arguments, options, message in [
        (([], keys, values, []), {}, "at least one"),
        ((SITES[:2], images, values[:1], moments), {}, "a second moment each"),
        ((SITES, [images[0].expand(-1, 3, -1, -1)], values[:1], moments), {}, "does not take"),
        (([SITES[0]] * 2, images, values[:1], moments[:2]), {}, "each once"),
        ((SITES, keys, values, moments), {}, "batch of images for each key"),
        ((SITES[0], keys, values, moments[0]), {"at": AT}, "batch of images for each key"),
        ((SITES, [], values, moments), {}, "keys are to be"),
        ((SITES, [draw(0, 3)], values, moments), {}, "keys are to be"),
        ((SITES[0], keys, values[:1], moments[0]), {}, r"values \[1, 64\]"),
        ((SITES[0], keys[:, :9], values, moments[0]), {}, r"keys \[2, 9\]"),
        ((SITES[0], keys, values, moments[0]), {"preservation": -1.0}, "preservation"),
    ]:
        with pytest.raises(InputError, match=message):
            memit(vit, *arguments, **options)  # type: ignore[arg-type] # what people may give
