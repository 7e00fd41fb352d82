"""`choose` with images: it makes edits of hidden sites itself, and judges them on unseen images."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin import (
    RemoveConcept,
    SalveError,
    SuppressClass,
    attach,
    choose,
    erase_through,
    find_concept,
    record,
    status,
)
from salve_plugin.control.choosing.concept_edits import folds
from salve_plugin.control.choosing.groups import Groups
from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.choosing.hidden_sites import (
    MOST_SITES,
    SiteSet,
    exact_sites,
    named_sites,
    site_sets,
    takes_offset,
)
from salve_plugin.control.choosing.proposed import Proposer
from salve_plugin.control.erasers import PairMoments, directional_ablation, leace, repair
from salve_plugin.control.operators import LowRankMap
from salve_plugin.demo import digits
from salve_plugin.errors import InputError, UnsupportedModelError

FIXTURES = Path(__file__).parents[2] / "fixtures"
SITES = ["blocks.1.ln1.hook_normalized", "blocks.3.ln2.hook_normalized"]
Loader = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def barred(digits_test: digits.Split) -> SimpleNamespace:
    """Digits with and without a bar, recorded at the head of the ViT."""
    hooked = attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    plain, labels = digits_test.images[:80], digits_test.labels[:80]
    marked = plain.clone()
    marked[:, :, :3] = marked.max()

    def loader(images: Tensor) -> Loader:
        return list(zip(torch.split(images, 60), torch.split(labels, 60), strict=True))

    images = [loader(marked), loader(plain)]
    acts = [record(hooked, one, progress=False) for one in images]
    concept = find_concept(acts[0], without=acts[1], name="bar")
    return SimpleNamespace(
        hooked=hooked, plain=plain, marked=marked, labels=labels, images=images, acts=acts,
        concept=concept, goal=RemoveConcept(concept, min_removed=0.9, max_harm=0.05),
    )  # fmt: skip


@pytest.fixture(scope="module")
def proposer(barred: SimpleNamespace) -> Proposer:
    head = JudgedHead.of(barred.hooked, barred.acts)
    return Proposer.of(head, barred.concept, barred.images, SITES)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_choice_says_what_is_at_which_site_and_leaves_the_model_as_it_was(
    barred: SimpleNamespace,
) -> None:
    before = bits(barred.hooked.model)
    choice = choose(barred.hooked, barred.goal, images=barred.images, sites=SITES[:1])
    after = barred.hooked.model.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert not status(barred.hooked.model).applied
    hidden = [one for one in choice.tried if one.hidden]
    assert {one.hidden[0].amount for one in hidden} == {"rank 1, scale 0", "rank 4, scale 0"}
    said = f"{choice.verdict} {choice.as_table().notes}"
    assert all(f"low rank map, rank {rank}, scale 0 at {SITES[0]}" in said for rank in (1, 4))
    assert all(one.to_json()["sites"] in ([], SITES[:1]) for one in choice.tried)
    assert choice.chosen.harm <= barred.goal.max_harm
    alone = next(one for one in choice.tried if not one.hidden)
    assert hidden[0].method == f"after repair of rank 1 at {SITES[0]}: no edit"
    assert hidden[0].error > 0  # it is fitted, and what was fitted is chosen among
    assert alone.error == 0
    for edit in choice.edits:
        edit.apply_(barred.hooked.model)
    for edit in choice.edits:
        edit.revert_(barred.hooked.model)
    after = barred.hooked.model.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())


def test_what_is_judged_is_unseen_and_what_is_returned_is_fitted_to_all(
    barred: SimpleNamespace, proposer: Proposer
) -> None:
    """By hand at one site: the eraser is fitted without each fold, and hooks make its change."""
    hooked, site = barred.hooked, barred.hooked.site(SITES[1])
    made = proposer.proposal(SiteSet((site.name,), 1))
    with torch.no_grad():
        caches = [
            hooked.run_with_cache(images, names_filter=site.name)[1]
            for images in (barred.marked, barred.plain)
        ]
    rows = [cache[site.name][:, site.prefix_tokens :] for cache in caches]
    half = len(barred.plain)

    def fitted(keep: Tensor) -> LowRankMap:
        marked, plain = (each[keep].flatten(0, 1).double() for each in rows)
        return repair(PairMoments.of([(marked, plain)]))

    def logits(operator: LowRankMap) -> Tensor:
        def change(x: Tensor, hook: object) -> Tensor:
            return operator.activation(x, site.channel_axis)

        with torch.no_grad():
            return torch.cat(
                [
                    hooked.run_with_hooks(images, fwd_hooks=[(site.name, change)])
                    for images in (barred.marked, barred.plain)
                ]
            )

    every = torch.ones(half, dtype=torch.bool)
    for own, view in zip(folds(barred.concept), made.unseen, strict=True):
        assert own[:half].equal(own[half:])  # the two of a pair stay together
        wanted = logits(fitted(~own[:half]))
        torch.testing.assert_close(view.head.logits, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(made.view.head.logits, logits(fitted(every)), rtol=1e-3, atol=1e-3)
    (edit,) = made.edits
    assert isinstance(edit.operator, LowRankMap)
    probe = rows[0].flatten(0, 1).double()
    torch.testing.assert_close(
        edit.operator.activation(probe, 1), fitted(every).activation(probe, 1),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_several_sites_are_those_that_are_erased_through_jointly(
    barred: SimpleNamespace, proposer: Proposer
) -> None:
    made = proposer.proposal(SiteSet(tuple(SITES), 1))
    assert made.name == f"repair of rank 1 at 2 hidden sites ({SITES[0]} to {SITES[1]})"
    marked, plain = barred.images
    wanted = erase_through(barred.hooked, marked, plain, SITES, "repair")
    for edit, other in zip(made.edits, wanted, strict=True):
        assert edit.site == other.site
        assert isinstance(edit.operator, LowRankMap)
        assert isinstance(other.operator, LowRankMap)
        probe = torch.randn(50, edit.site.width, dtype=torch.float64)
        torch.testing.assert_close(
            edit.operator.activation(probe, 1), other.operator.activation(probe, 1),
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


def test_without_pairs_the_eraser_is_leace_of_the_rows(barred: SimpleNamespace) -> None:
    count = len(barred.labels)
    flags = torch.arange(count) < count // 2
    images = torch.where(flags[:, None, None, None], barred.marked, barred.plain)
    loader = list(zip(torch.split(images, 60), torch.split(barred.labels, 60), strict=True))
    acts = record(barred.hooked, loader, progress=False)
    concept = find_concept(acts, flags, name="bar")
    head = JudgedHead.of(barred.hooked, [acts])
    made = Proposer.of(head, concept, [loader], SITES).proposal(SiteSet((SITES[0],), 1))
    there = record(barred.hooked, loader, SITES[0], progress=False)
    expected = leace(find_concept(there, flags, name="bar").moments(balanced=True))
    probe = there.tensor()[:500].double()
    (edit,) = made.edits
    assert isinstance(edit.operator, LowRankMap)
    torch.testing.assert_close(
        edit.operator.activation(probe, 1), expected.activation(probe, 1), rtol=1e-4, atol=1e-4
    )


def test_sites_are_found_where_branches_read(barred: SimpleNamespace) -> None:
    head = barred.hooked.site("unembed.hook_in")
    found = exact_sites(barred.hooked, head)
    assert 0 < len(found) <= MOST_SITES
    assert all(".ln1." in name or ".ln2." in name for name in found)
    assert found == sorted(found, key=list(barred.hooked.sites).index)


def test_padded_convolutions_get_maps_about_zero(barred: SimpleNamespace) -> None:
    resnet = attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    found = exact_sites(resnet, resnet.site("unembed.hook_in"))
    assert found
    assert not any(takes_offset(resnet, resnet.site(name)) for name in found)
    acts = [record(resnet, images, progress=False) for images in barred.images]
    concept = find_concept(acts[0], without=acts[1], name="bar")
    head = JudgedHead.of(resnet, acts)
    proposer = Proposer.of(head, concept, barred.images, found[-1:])
    (edit,) = proposer.proposal(SiteSet((found[-1],), 1)).edits
    marked, plain = (
        record(resnet, images, found[-1], progress=False).tensor().double()
        for images in barred.images
    )
    assert isinstance(edit.operator, LowRankMap)
    assert not edit.operator.moves_origin
    # By brute force: no map of one direction through zero brings the two closer to plain.
    read, write = edit.operator.read.double(), edit.operator.write.double()

    def loss(write: Tensor, read: Tensor) -> float:
        back = (marked - marked @ read @ write.T - plain).square().sum(1).mean()
        return float(back + (plain @ read @ write.T).square().sum(1).mean())

    least = loss(write, read)
    assert least < float((marked - plain).square().sum(1).mean())
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        change = torch.randn(write.shape, generator=random, dtype=torch.float64)
        for size in (1e-1, 1e-2):
            step = size * change * write.norm() / change.norm()
            assert loss(write + step, read) > least


def test_without_pairs_a_map_about_zero_is_the_difference_of_means(
    barred: SimpleNamespace,
) -> None:
    resnet = attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    site = exact_sites(resnet, resnet.site("unembed.hook_in"))[-1]
    flags = torch.arange(len(barred.labels)) < len(barred.labels) // 2
    images = torch.where(flags[:, None, None, None], barred.marked, barred.plain)
    loader = [(images, barred.labels)]
    acts = record(resnet, loader, progress=False)
    concept, head = find_concept(acts, flags, name="bar"), JudgedHead.of(resnet, [acts])
    made = Proposer.of(head, concept, [loader], [site]).proposal(SiteSet((site,), 1))
    there = find_concept(record(resnet, loader, site, progress=False), flags, name="bar")
    expected = directional_ablation(there.moments(balanced=True), centre="origin")
    (edit,) = made.edits
    assert isinstance(edit.operator, LowRankMap)
    probe = torch.randn(20, edit.site.width, dtype=torch.float64)
    torch.testing.assert_close(
        edit.operator.activation(probe, 1), expected.activation(probe, 1), rtol=1e-5, atol=1e-5
    )
    assert "balanced difference of means" in made.name


def test_a_model_without_exact_sites_says_so(barred: SimpleNamespace) -> None:
    nowhere = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    hooked = attach(nowhere.eval(), head="1", probe=barred.plain[:2])
    acts = [record(hooked, images, progress=False) for images in barred.images]
    goal = RemoveConcept(find_concept(acts[0], without=acts[1]))
    with pytest.raises(UnsupportedModelError, match="no hidden site"):
        choose(hooked, goal, images=barred.images)


@given(st.integers(1, 30), st.booleans())
def test_sets_are_few_and_by_depth(count: int, paired: bool) -> None:
    sites = [f"site {number}" for number in range(count)]
    sets = site_sets(sites, paired=paired)
    assert len({(each.sites, each.rank) for each in sets}) == len(sets) <= 4
    assert all(list(each.sites) == sorted(each.sites, key=sites.index) for each in sets)
    assert any(each.sites == tuple(sites) for each in sets)
    assert all(each.sites for each in sets)


def test_the_model_is_as_it_was_after_an_error(barred: SimpleNamespace, proposer: Proposer) -> None:
    before = bits(barred.hooked.model)
    # Half of the images are missing where the classifier's input is recorded: all edits are on.
    broken = replace(proposer, images=[barred.images[0], barred.images[1][:1]])
    with pytest.raises(SalveError, match="the very images"):
        broken.proposal(SiteSet(tuple(SITES), 1))
    after = barred.hooked.model.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())
    assert not status(barred.hooked.model).applied


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sites": SITES}, "needs the concept's images"),
        ({"images": True, "sites": []}, "list of names"),
        ({"images": True, "sites": SITES[0]}, "list of names"),
        ({"images": True, "sites": [SITES[0]] * 2}, "list of names"),
        ({"images": True, "sites": ["unembed.hook_in"]}, "edited anyway"),
        ({"images": True, "sites": [["unembed.hook_in"]]}, "no site"),
        ({"images": True, "sites": ["blocks.3.norm2", SITES[1]]}, "list of names"),
        ({"images": True, "sites": iter(SITES)}, "list of names"),
        ({"images": True, "sites": 5}, "list of names"),
        ({"images": True, "sites": ["nowhere"]}, "nowhere"),
        ({"images": True, "sites": ["blocks.1.hook_resid_post"]}, "no linear layer"),
    ],
)
def test_sites_that_cannot_be_used_are_named(
    barred: SimpleNamespace, options: dict[str, Any], sentence: str
) -> None:
    given = {**options, "images": barred.images} if "images" in options else options
    with pytest.raises(SalveError, match=sentence):
        choose(barred.hooked, barred.goal, **given)
    with pytest.raises(SalveError, match="leave hidden, images and sites out"):
        choose(barred.hooked, SuppressClass(1), barred.acts[0], sites=SITES)


def test_images_of_different_groups_are_no_pairs(barred: SimpleNamespace) -> None:
    """As of two folders of as many images a class, which show different things."""
    with_, without = barred.acts
    everyone = range(with_.n_images + without.n_images)
    apart = find_concept(with_, without=without, groups=everyone)
    assert not apart.is_paired
    assert not Groups.of(apart).paired
    with pytest.raises(InputError, match="was not found in pairs"):
        apart.pair_moments()
    photographs = torch.arange(with_.n_images) // 2
    assert find_concept(with_, without=without, groups=photographs.repeat(2)).is_paired


def test_the_default_type_of_tensors_changes_nothing(barred: SimpleNamespace) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert barred.acts[0].tensor().dtype == torch.float32
        head = JudgedHead.of(barred.hooked, barred.acts)
        assert takes_offset(barred.hooked, barred.hooked.site(SITES[0]))
        assert exact_sites(barred.hooked, head.site)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("untyped")
def test_a_layer_names_its_site(barred: SimpleNamespace) -> None:
    head = barred.hooked.site("unembed.hook_in")
    names = [barred.hooked.model.blocks[3].norm2, "blocks.1.norm1"]
    assert named_sites(barred.hooked, names, head) == SITES


@pytest.mark.usefixtures("untyped")
def test_images_and_edits_that_are_none_are_refused_before_anything_is_tried(
    barred: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(sentence: str, **given: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            choose(barred.hooked, barred.goal, **given)

    monkeypatch.setattr("salve_plugin.control.choosing.choose.removing", pytest.fail)
    for images in (barred.marked, iter(barred.images), None):
        refused(f"images is a {type(images).__name__}", images=images, sites=SITES)
    refused("holds a NoneType", images=[None, None], sites=SITES)
    refused("holds 1 loaders", images=barred.images[:1], sites=SITES)
    refused("is not the one that was recorded", images=barred.images[::-1], sites=SITES)
    refused(r"hidden \[3\]", images=barred.images, hidden=[3])
