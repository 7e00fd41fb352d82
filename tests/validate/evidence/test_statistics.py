"""Class profile, retrieval and co-occurrence against brute force, and nulls that behave."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.control.concepts.evidence import auc
from salve_plugin.validate.evidence.class_profile import NO_CLASS, class_profile
from salve_plugin.validate.evidence.cooccurrence import NO_PARTNER, partners
from salve_plugin.validate.evidence.permuting import p_values, permuted_labels, upper
from salve_plugin.validate.evidence.retrieval import precision_at, precision_by_chance

SEEDS = st.integers(0, 1000)


def coarse(*shape: int, seed: int) -> Tensor:
    """Return numbers with many ties."""
    return torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def all_orders(labels: Tensor) -> Tensor:
    return torch.tensor(list(permutations(labels.tolist())))


@pytest.mark.parametrize("permutations", [19, 20, 25, 39, 41, 99, 200, 1001])
def test_what_is_above_the_null_is_beyond_chance_and_nothing_else(permutations: int) -> None:
    draw = torch.Generator().manual_seed(0)
    null = torch.randperm(permutations, generator=draw)[:, None].double()
    bound = float(upper(null))
    p = p_values(torch.tensor([bound, bound + 0.5]).double(), null)
    assert float(p[0]) > 0.05
    assert float(p[1]) <= 0.05


@given(seed=SEEDS)
@settings(deadline=None, max_examples=6, derandomize=True)
def test_rank_sums_are_standardized_over_all_orders_of_the_labels(seed: int) -> None:
    codes, labels = coarse(5, 2, seed=seed), torch.tensor([0, 0, 1, 1, 2])
    orders = all_orders(labels)
    profile = class_profile(codes, labels, orders)
    for latent in range(2):
        areas = {
            label: np.array([auc(codes[:, latent].double(), order == label) for order in orders])
            for label in range(3)
        }
        if float(codes[:, latent].std()) == 0:
            assert int(profile.label[latent]) == NO_CLASS
            assert float(profile.auc_p[latent]) == 1
            continue
        z = {c: (areas[c] - 0.5) / areas[c].std() for c in areas}
        own = {c: (auc(codes[:, latent].double(), labels == c) - 0.5) / areas[c].std() for c in z}
        best = int(profile.label[latent])
        assert own[best] == pytest.approx(max(own.values()))
        assert float(profile.z[latent]) == pytest.approx(own[best])
        area = auc(codes[:, latent].double(), labels == best)
        assert float(profile.auc[latent]) == pytest.approx(area)
        maxima = np.max(list(z.values()), axis=0)
        as_well = int((maxima >= own[best] - 1e-9).sum())
        assert float(profile.auc_p[latent]) == pytest.approx((1 + as_well) / (1 + len(orders)))
        null = 0.5 + np.quantile(maxima, 0.95, method="higher") * areas[best].std()
        assert float(profile.auc_null[latent]) == pytest.approx(min(1.0, null))


@given(seed=SEEDS)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_neither_a_stretch_nor_names_of_classes_change_the_profile(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    codes, labels = torch.randn(40, 5, generator=random), torch.arange(40) % 3
    orders = permuted_labels(labels, 20, seed)
    profile = class_profile(codes, labels, orders)
    stretched = class_profile(codes.exp() * 7, labels, orders)
    renamed = class_profile(codes, 4 - 2 * labels, 4 - 2 * orders)
    for other in (stretched, renamed):
        torch.testing.assert_close(other.auc, profile.auc)
        torch.testing.assert_close(other.maxima, profile.maxima)
    assert torch.equal(renamed.label, 4 - 2 * profile.label)


@pytest.mark.parametrize("sizes", [(30, 30), (52, 5, 3), (6,) * 10])
def test_random_labels_are_significant_as_often_as_they_say(sizes: tuple[int, ...]) -> None:
    """Rare classes and ties, where areas are far from 1/2 by chance, among them."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(len(labels), 1500, generator=random)
    codes[:, ::2] = codes[:, ::2].clamp(min=1)  # off in most images
    profile = class_profile(codes, labels, permuted_labels(labels, 199, 1))
    for part in (profile.auc_p[::2], profile.auc_p[1::2]):
        assert float((part <= 0.05).double().mean()) == pytest.approx(0.05, abs=0.025)
        assert float((part <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.1)


def test_of_many_latents_without_a_class_rarely_one_is_said_to_tell_one() -> None:
    labels, significant = torch.arange(30) % 3, 0
    for seed in range(100):
        codes = torch.randn(30, 15, generator=torch.Generator().manual_seed(seed))
        profile = class_profile(codes, labels, permuted_labels(labels, 39, seed))
        p = p_values(profile.z, profile.maxima[:, None])
        significant += int((p <= 0.05).any())
    assert 1 <= significant <= 11  # 5 expected


@given(seed=SEEDS, k=st.integers(1, 6))
@settings(deadline=None, max_examples=10, derandomize=True)
def test_precision_is_the_mean_over_all_ways_to_break_ties(seed: int, k: int) -> None:
    codes = coarse(6, 2, seed=seed)
    relevant = coarse(6, 2, seed=seed + 1) > 1
    precision = precision_at(codes, relevant, k)
    for latent in range(2):
        shares = []
        for order in permutations(range(6)):
            column = codes[list(order), latent]
            top = column.argsort(descending=True, stable=True)[:k]
            shares.append(float(relevant[list(order), latent][top].double().mean()))
        assert float(precision[latent]) == pytest.approx(np.mean(shares))


def test_precision_by_chance_is_that_of_the_most_frequent_class_among_k_images() -> None:
    orders = all_orders(torch.tensor([0, 0, 1, 1, 2]))
    shares = precision_by_chance(orders, 2)[:, 0]
    # Two alike: 2 of the 5 choose 2 = 10 pairs.
    assert sorted(set(shares.tolist())) == [0.5, 1.0]
    assert float((shares == 1).double().mean()) == pytest.approx(0.2)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_phi_is_the_correlation_and_its_p_that_of_all_orders(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    active = (torch.rand(6, 4, generator=random) < 0.5).double()
    joint, counts = active.T @ active, active.sum(0)
    own = torch.tensor([2, 0])
    result = partners(joint[own], counts, own, 6)
    varied = (active.std(0) > 0).tolist()
    for row, latent in enumerate(own.tolist()):
        others = [o for o in range(4) if o != latent and varied[o] and varied[latent]]
        if not others:
            assert int(result.partner[row]) == NO_PARTNER
            assert bool(result.phi[row].isnan())
            continue
        phis = {o: np.corrcoef(active[:, latent], active[:, o])[0, 1] for o in others}
        best = int(result.partner[row])
        assert phis[best] == pytest.approx(max(phis.values()))
        assert float(result.phi[row]) == pytest.approx(phis[best])
        overlaps = (active[ORDERS, latent] * active[:, best]).sum(1).numpy()
        by_all = float((overlaps >= float(joint[latent, best])).mean()) * len(others)
        assert float(result.phi_p[row]) == pytest.approx(min(1, by_all))
        # Beyond the null is what is significant, and only that.
        assert (float(result.phi_p[row]) <= 0.05) == (
            phis[best] > float(result.phi_null[row]) + 1e-9
        )


ORDERS = torch.tensor(list(permutations(range(6))))


def test_a_null_is_what_chance_stays_within_and_no_p_is_zero() -> None:
    null = torch.arange(100.0).double()[:, None]
    assert float(upper(null)) == 95
    assert p_values(torch.tensor([1e9, 99.0, -1.0]).double(), null).tolist() == pytest.approx(
        [1 / 101, 2 / 101, 1]
    )


def test_independent_latents_rarely_have_a_partner() -> None:
    p = []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        density = torch.rand(40, generator=random)
        active = (torch.rand(80, 40, generator=random) < density).double()
        result = partners(active.T @ active, active.sum(0), torch.arange(40), 80)
        p.append(result.phi_p)
    # Corrected by Bonferroni and of whole numbers: never more than it says.
    assert 0 < float((torch.cat(p) <= 0.05).double().mean()) <= 0.05
