"""The fewest latents that a decision hangs on, against all subsets."""

from itertools import combinations, product
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import salve_plugin as salve
from salve_plugin.control.solving import two_sided
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.validate.evidence.flip_shares import _beside_chance
from salve_plugin.validate.evidence.flipping import flip_of


def decision(logits: Tensor) -> int:
    return int(two_sided(logits[None])[0].argmax())


@given(seed=st.integers(0, 1000), classes=st.integers(1, 4))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_no_smaller_set_changes_the_decision(seed: int, classes: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(classes, generator=random).double()
    codes = torch.randn(6, generator=random).double().clamp(min=0)
    pull = torch.randn(6, classes, generator=random).double()
    flip = flip_of(logits, codes, pull, random)
    assert flip.decision == decision(logits)

    def becomes(latents: tuple[int, ...]) -> int:
        taken = list(latents)
        return decision(logits - codes[taken] @ pull[taken])

    smallest = [
        size
        for size in range(7)
        if any(becomes(subset) != flip.decision for subset in combinations(range(6), size))
    ]
    assert len(flip.latents) == (smallest[0] if smallest else 0)
    assert flip.becomes == (becomes(flip.latents) if smallest else None)
    if flip.becomes is not None:
        assert flip.becomes != flip.decision
        assert all(codes[list(flip.latents)] != 0)
    if flip.by_chance is not None:
        assert len(flip.latents) <= flip.by_chance <= int((codes != 0).sum())


def test_decisions_of_images_hang_on_the_latents_of_their_class(known: Any) -> None:
    x = known.acts.tensor()[:6]
    flips = salve.fewest_to_flip(known.hooked, known.dictionary, x)
    codes = known.dictionary.encode(x)
    for row, flip in enumerate(flips.images):
        assert flip.decision == row % 3
        with torch.no_grad():
            taken = list(flip.latents)
            without = x[row] - codes[row, taken] @ known.dictionary.atoms[taken]
            assert int(known.hooked.model(without).argmax()) == flip.becomes
    assert "6 of 6 decisions" in repr(flips)
    assert "in random order" in str(flips)


def test_a_dictionary_of_another_site_is_refused(make_recorded: Any, known: Any) -> None:
    tokens = make_recorded(torch.rand(12, 3, 16), torch.arange(12) % 2)
    state = dict(known.dictionary.state_dict())
    hidden = salve.Dictionary(state, salve.TopK(k=8), tokens.acts.site, {})
    with pytest.raises(InputError, match="what the classifier reads"):
        salve.fewest_to_flip(tokens.hooked, hidden, torch.rand(2, 3, 16))


def test_a_dictionary_of_another_network_is_refused(known: Any) -> None:
    state = dict(known.dictionary.state_dict())
    other = salve.Dictionary(state, salve.TopK(k=8), known.acts.site, {"network_sha256": "0" * 64})
    x = known.acts.tensor()[:2]
    with pytest.raises(BaseMismatchError, match="the dictionary is of network 000000000000"):
        salve.fewest_to_flip(known.hooked, other, x)
    with pytest.warns(UserWarning, match="of network"):
        flips = salve.fewest_to_flip(known.hooked, other, x, on_base_mismatch="warn")
    assert flips == salve.fewest_to_flip(known.hooked, known.dictionary, x)


def test_shares_of_images_are_those_of_single_flips(known: Any) -> None:
    hooked, dictionary, acts = known
    result = salve.evidence(*known, permutations=2).flips
    assert result is not None
    x = acts.tensor()
    flips = salve.fewest_to_flip(hooked, dictionary, x).images
    assert result.n_images == len(flips) == 150
    for latent in range(16):
        share = sum(latent in flip.latents for flip in flips) / 150
        assert float(result.share[latent]) == pytest.approx(share)
    # The planted latents, one a class, are what decisions hang on.
    assert float(result.share_p[:3].max()) < 0.01
    assert "flips" in salve.evidence(*known, permutations=2).table([0]).splitlines()[1]


@given(seed=st.integers(0, 500), images=st.integers(1, 7))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_chance_is_that_of_all_ways_to_draw(seed: int, images: int) -> None:
    random = torch.Generator().manual_seed(seed)
    chance = torch.rand(images, 2, generator=random, dtype=torch.float64)
    chance[0, 0] = 0.0
    among = torch.rand(images, 2, generator=random) < 0.5
    result = _beside_chance(among, chance)
    for latent in range(2):
        law = [0.0] * (images + 1)
        for drawn in product((False, True), repeat=images):
            law[sum(drawn)] += prod(
                float(p if hit else 1 - p) for p, hit in zip(chance[:, latent], drawn, strict=True)
            )
        count = int(among[:, latent].sum())
        assert float(result["share_p"][latent]) == pytest.approx(sum(law[count:]), abs=1e-12)
        null = next(n for n in range(images + 1) if sum(law[: n + 1]) >= 0.95 - 1e-12)
        assert float(result["share_null"][latent]) == pytest.approx(null / images)
