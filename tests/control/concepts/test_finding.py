"""Concepts found in recordings: what they are, what is known of them, what is refused."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from salve_plugin import (
    Activations,
    Dictionary,
    HookedModel,
    SalveError,
    direction_concept,
    erase,
    find_concept,
    latent_concept,
)
from salve_plugin.control.concepts.evidence import auc
from salve_plugin.control.concepts.recordings import as_tensor
from salve_plugin.control.concepts.split import Split, group_indices


def test_labels_give_a_concept_whose_read_out_holds_on_other_images(
    planted: Callable[..., SimpleNamespace],
) -> None:
    known, fresh = planted(name="known"), planted(name="fresh", seed=9)
    concept = find_concept(known.acts, known.has, name="shift")
    assert concept.source == "labels"
    assert concept.values.tolist() == known.has.double().tolist()
    evidence = concept.evidence
    assert evidence is not None
    assert evidence.is_real
    # What was said of images that the probe had not seen holds for images that nobody has seen.
    unseen = auc(fresh.x.double() @ concept.read, fresh.has)
    assert evidence.auc == pytest.approx(unseen, abs=0.08)
    assert "held-out AUC" in repr(concept)


@pytest.mark.parametrize("n_images", [8, 9, 12])
def test_four_images_of_each_kind_are_enough(
    n_images: int, planted: Callable[..., SimpleNamespace]
) -> None:
    acts = planted(n_images, strength=20.0).acts
    has = torch.arange(n_images) < 4
    assert find_concept(acts, has).evidence is not None
    for groups in ([0] * n_images, has.long()):
        with pytest.raises(SalveError, match="groups leave no images to judge on"):
            find_concept(acts, has, groups=groups)


def test_chance_is_not_taken_for_a_concept(planted: Callable[..., SimpleNamespace]) -> None:
    data = planted(strength=0.0)
    draw = torch.Generator().manual_seed(3)
    concept = find_concept(data.acts, torch.rand(120, generator=draw) < 0.5)
    assert concept.evidence is not None
    assert not concept.evidence.is_real


def test_two_recordings_are_pairs_and_never_split(
    planted: Callable[..., SimpleNamespace],
) -> None:
    one, two = planted(40, name="with"), planted(40, name="without")
    concept = find_concept(one.acts, without=two.acts)
    assert concept.n_images == 80
    assert concept.has is not None
    assert concept.has.tolist() == [True] * 40 + [False] * 40
    groups = group_indices(None, 80, paired=True)
    split = Split.of(concept.has, groups, 0)
    assert split.block[:40].tolist() == split.block[40:].tolist()
    assert bool((split.labels[:40] + split.labels[40:] == 1).all())  # permuted within each pair
    images = torch.cat([batch.images for batch, _ in concept.rows()])
    assert images.tolist() == list(range(80))


def test_groups_are_never_on_both_sides() -> None:
    has = torch.arange(60) % 2 == 0
    groups = group_indices(torch.arange(60) // 6 + 100, 60, paired=False)
    split = Split.of(has, groups, 0)
    for group in range(10):
        assert len(set(split.block[groups == group].tolist())) == 1
    whole = torch.arange(60) < 30
    dealt = Split.of(whole, groups, 0).labels
    for group in range(10):  # groups that have it or not as a whole do so under the null, too
        members = dealt[groups == group]
        assert bool((members == members[0]).all())


def test_images_that_come_in_turns_are_in_every_block() -> None:
    has = torch.arange(240) % 3 == 0
    turn = torch.arange(240) % 8
    split = Split.of(has, torch.arange(240), 0)
    for kind in (has, ~has):
        sizes = split.block[kind].bincount()
        assert int(sizes.max()) - int(sizes.min()) <= 1
        for block in range(split.n_blocks):
            seen = turn[kind & (split.block == block)]
            assert len(seen.unique()) > 1  # type: ignore[no-untyped-call] # torch leaves it untyped


def test_a_sparse_probe_names_its_latents(
    planted: Callable[..., SimpleNamespace], atoms: Dictionary
) -> None:
    data = planted()
    concept = find_concept(data.acts, data.has, dictionary=atoms, n_latents=3)
    assert concept.source == "sparse probe"
    assert len(concept.latents) == 3
    assert sum(latent.share for latent in concept.latents) == pytest.approx(1)
    shares = [latent.share for latent in concept.latents]
    assert shares == sorted(shares, reverse=True)
    codes = atoms.encode(data.x).double()
    for latent in concept.latents:
        assert latent.image == int(codes[:, latent.index].argmax())
        assert 0 < latent.stability <= 1
    # The value of a row is a weighted sum of these latents' codes and of nothing else.
    chosen = codes[:, [latent.index for latent in concept.latents]]
    chosen, values = chosen - chosen.mean(0), concept.values - concept.values.mean()
    weights = torch.linalg.lstsq(chosen, values[:, None]).solution
    torch.testing.assert_close((chosen @ weights)[:, 0], values, rtol=1e-5, atol=1e-6)


def test_a_latent_and_a_direction_are_concepts(
    planted: Callable[..., SimpleNamespace], atoms: Dictionary
) -> None:
    data = planted()
    latent = latent_concept(atoms, data.acts, 2, data.has)
    torch.testing.assert_close(latent.values, atoms.encode(data.x)[:, 2].double())
    direction = direction_concept(data.acts, atoms.atoms[2])
    torch.testing.assert_close(direction.values, data.x.double() @ atoms.atoms[2].double())
    assert latent.evidence is not None
    assert direction.evidence is None


def test_the_same_seed_gives_the_same_concept(
    planted: Callable[..., SimpleNamespace], atoms: Dictionary
) -> None:
    data = planted()
    one, two = (find_concept(data.acts, data.has, dictionary=atoms) for _ in range(2))
    assert one.values.equal(two.values)
    assert (one.latents, one.evidence) == (two.latents, two.evidence)


@pytest.mark.parametrize(
    ("has", "message"),
    [
        (torch.ones(120, dtype=torch.bool), "at least 4 with and 4 without"),
        (torch.zeros(119, dtype=torch.bool), "each of the recording's 120 images"),
        (torch.arange(120) % 3, "truth value"),
        (None, "give either"),
    ],
)
def test_labels_that_tell_nothing_are_refused(
    planted: Callable[..., SimpleNamespace], has: Tensor | None, message: str
) -> None:
    with pytest.raises(SalveError, match=message):
        find_concept(planted().acts, has)


def test_what_is_no_list_is_named() -> None:
    with pytest.raises(SalveError, match=r"'bright ones' is no list of truth values"):
        as_tensor("bright ones", 3)


def test_what_belongs_elsewhere_is_refused(
    planted: Callable[..., SimpleNamespace], make_dictionary: Callable[..., Dictionary],
    digits_acts: Activations,
) -> None:  # fmt: skip
    data = planted()
    with pytest.raises(SalveError, match="one site"):
        find_concept(data.acts, data.has, dictionary=make_dictionary(digits_acts.site))
    with pytest.raises(SalveError, match="one site"):
        find_concept(data.acts, without=digits_acts)
    with pytest.raises(SalveError, match="latent 99"):
        latent_concept(make_dictionary(data.acts.site), data.acts, 99)
    with pytest.raises(SalveError, match="not zero"):
        direction_concept(data.acts, torch.zeros(6))
    with pytest.raises(SalveError, match="n_latents"):
        find_concept(data.acts, data.has, n_latents=0)


def test_hooked_models_of_another_network_are_refused(
    planted: Callable[..., SimpleNamespace], tiny: HookedModel
) -> None:
    data = planted()
    concept = find_concept(data.acts, data.has)
    body = tiny.model.get_submodule("body")
    with torch.no_grad():
        body.get_parameter("weight").mul_(1.1)
    with pytest.raises(SalveError, match="network"):
        erase(tiny, concept)
    with pytest.warns(UserWarning, match="network"):
        assert erase(tiny, concept, on_base_mismatch="warn").kind


def test_a_concept_stays_what_it_was_when_its_callers_tensors_change(
    planted: Callable[..., SimpleNamespace],
) -> None:
    data = planted()
    has, direction = data.has.clone(), torch.ones(data.acts.width, dtype=torch.float64)
    found = find_concept(data.acts, has)
    given = direction_concept(data.acts, direction)
    has.zero_()
    direction.zero_()
    assert found.has is not None
    assert found.has.equal(data.has)
    assert bool((given.read == 1).all())
