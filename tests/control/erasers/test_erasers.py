"""Erasers against concept-erasure, brute force and the theorems that they are named for."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it still scripts one function
    from concept_erasure import LeaceFitter

from salve_plugin import Dictionary, LowRankMap, SalveError, Site
from salve_plugin.control.erasers import (
    JointMoments,
    directional_ablation,
    fold_latents,
    fold_posterior,
    inlp,
    leace,
    safree,
    splince,
)
from salve_plugin.discover.learners import create
from salve_plugin.errors import InputError

WIDTH = 7


def data(seed: int, n: int = 300, values: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations that hold a concept and a class, the concept's values, and the class."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (n,), generator=draw)
    has = (torch.rand(n, generator=draw) < torch.where(label == 0, 0.9, 0.3)).double()
    mixing = torch.randn(WIDTH, WIDTH, generator=draw).double()
    x = torch.randn(n, WIDTH, generator=draw).double() @ mixing
    x += has[:, None] * torch.randn(WIDTH, generator=draw).double() * 2
    x += torch.randn(3, WIDTH, generator=draw).double()[label]
    z = has[:, None] if values == 1 else torch.nn.functional.one_hot(label, 3).double()
    return x + 5, z, label


def moved(eraser: LowRankMap, x: Tensor) -> Tensor:
    return eraser.activation(x, 1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), values=st.sampled_from([1, 3]))
def test_leace_is_that_of_concept_erasure(seed: int, values: int) -> None:
    x, z, _ = data(seed, values=values)
    fitter = LeaceFitter(
        WIDTH, values, constrain_cov_trace=False, shrinkage=False, dtype=torch.float64,
        svd_tol=1e-6,
    )  # fmt: skip
    fitter.update(x, z)
    expected = fitter.eraser(x)
    ours = leace(JointMoments.of([(x, z)]), shrinkage=0.0)
    torch.testing.assert_close(moved(ours, x), expected, rtol=1e-7, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_after_leace_nothing_covaries_and_the_mean_stays(seed: int) -> None:
    x, z, _ = data(seed)
    after = moved(leace(JointMoments.of([(x, z)]), shrinkage=0.0), x)
    moments = JointMoments.of([(after, z)])
    assert float(moments.xz.abs().max()) < 1e-9
    torch.testing.assert_close(after.mean(0), x.mean(0))


@pytest.mark.parametrize("seed", [0, 1])
def test_leace_moves_least_of_all_maps_that_remove_the_covariance(seed: int) -> None:
    x, z, _ = data(seed)
    moments = JointMoments.of([(x, z)])
    ours = float((moved(leace(moments, shrinkage=0.0), x) - x).square().sum(1).mean())
    cross = moments.xz[:, 0].numpy()
    centred = (x - x.mean(0)).numpy()

    def displacement(change: np.ndarray) -> float:
        # x' = x - A (x - μ) with A Σ_xz = Σ_xz: any A is pushed onto that constraint.
        matrix = change.reshape(WIDTH, WIDTH)
        matrix = matrix + np.outer(cross - matrix @ cross, cross) / (cross @ cross)
        return float(((centred @ matrix.T) ** 2).sum(1).mean())

    best = minimize(displacement, np.zeros(WIDTH * WIDTH), method="L-BFGS-B")
    assert ours == pytest.approx(best.fun, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_through_the_origin_nothing_covaries_and_the_mean_stays_all_the_same(seed: int) -> None:
    x, z, label = data(seed)
    x = x + 3
    moments = JointMoments.of([(x, z)])
    one_hot = torch.nn.functional.one_hot(label, 3).double()
    labels = JointMoments.of([(x, one_hot)])
    plain = leace(moments, shrinkage=0.0, centre="origin")
    keeping = splince(moments, labels, shrinkage=0.0, centre="origin")
    for through in (plain, keeping):
        assert not through.offset.any()
        after = moved(through, x)
        assert float(JointMoments.of([(after, z)]).xz.abs().max()) < 1e-8
        torch.testing.assert_close(after.mean(0), x.mean(0))
    torch.testing.assert_close(JointMoments.of([(moved(keeping, x), one_hot)]).xz, labels.xz)
    # A second constraint costs something: nothing moves x less than LEACE about the mean.
    least = moved(leace(moments, shrinkage=0.0), x)
    assert float((moved(plain, x) - x).norm()) >= float((least - x).norm()) - 1e-9


@pytest.mark.parametrize("seed", [0, 1])
def test_of_the_maps_through_the_origin_it_moves_least(seed: int) -> None:
    x, z, _ = data(seed)
    x = x + 1
    moments = JointMoments.of([(x, z)])
    ours = float(
        (moved(leace(moments, shrinkage=0.0, centre="origin"), x) - x).square().sum(1).mean()
    )
    # x' = x - A x with A Σ_xz = Σ_xz and A μ = 0: any A is pushed onto both.
    known = torch.stack([moments.xz[:, 0], moments.x_mean], 1)
    wanted = torch.stack([moments.xz[:, 0], torch.zeros(WIDTH, dtype=torch.float64)], 1)
    inverse = torch.linalg.pinv(known)

    def displacement(change: np.ndarray) -> float:
        matrix = torch.from_numpy(change.reshape(WIDTH, WIDTH))
        matrix = matrix + (wanted - matrix @ known) @ inverse
        return float((x @ matrix.T).square().sum(1).mean())

    best = minimize(displacement, np.zeros(WIDTH * WIDTH), method="L-BFGS-B")
    assert ours == pytest.approx(best.fun, rel=1e-3)


def test_a_mean_at_zero_or_along_the_concept() -> None:
    x, z, _ = data(2)
    centred = x - x.mean(0)
    moments = JointMoments.of([(centred, z)])
    through = leace(moments, shrinkage=0.0, centre="origin")
    torch.testing.assert_close(
        moved(through, centred), moved(leace(moments, shrinkage=0.0), centred)
    )
    # The concept's own direction as the mean: to take one out is to move the other.
    along = JointMoments.of([(centred + 5 * moments.xz[:, 0], z)])
    with pytest.raises(InputError, match="the mean of a map through the origin"):
        leace(along, shrinkage=0.0, centre="origin")


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_splince_removes_the_concept_and_keeps_the_labels(seed: int) -> None:
    x, z, label = data(seed)
    moments = JointMoments.of([(x, z)])
    one_hot = torch.nn.functional.one_hot(label, 3).double()
    labels = JointMoments.of([(x, one_hot)])
    after = moved(splince(moments, labels, shrinkage=0.0), x)
    assert float(JointMoments.of([(after, z)]).xz.abs().max()) < 1e-8
    torch.testing.assert_close(JointMoments.of([(after, one_hot)]).xz, labels.xz)
    # It pays for that: no map that removes the covariance moves x less than LEACE.
    least = moved(leace(moments, shrinkage=0.0), x)
    assert float((after - x).norm()) >= float((least - x).norm()) - 1e-9


def test_splince_refuses_a_concept_that_is_the_class() -> None:
    x, _, label = data(0)
    moments = JointMoments.of([(x, (label == 0).double()[:, None])])
    labels = JointMoments.of([(x, torch.nn.functional.one_hot(label, 3).double())])
    with pytest.raises(SalveError, match="leace"):
        splince(moments, labels)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_directional_ablation_takes_out_the_difference_of_means(seed: int) -> None:
    x, z, _ = data(seed)
    has = z[:, 0] > 0
    direction = torch.nn.functional.normalize(x[has].mean(0) - x[~has].mean(0), dim=0)
    moments = JointMoments.of([(x, z)])
    zeroed = x - torch.outer(x @ direction, direction)
    torch.testing.assert_close(moved(directional_ablation(moments, centre="origin"), x), zeroed)
    about_mean = zeroed + direction * (x.mean(0) @ direction)
    torch.testing.assert_close(moved(directional_ablation(moments), x), about_mean)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), iterations=st.integers(1, 4))
def test_inlp_is_one_probe_after_another(seed: int, iterations: int) -> None:
    x, z, _ = data(seed)
    eraser = inlp(JointMoments.of([(x, z)]), iterations=iterations, shrinkage=0.0, min_r2=0.0)
    centred, rest, basis = x - x.mean(0), x - x.mean(0), torch.zeros(WIDTH, 0, dtype=x.dtype)
    for _ in range(eraser.rank):  # brute force: fit on what is left, project the data
        probe = np.linalg.lstsq(rest.numpy(), (z - z.mean(0)).numpy(), rcond=1e-10)[0]
        fresh = torch.from_numpy(probe[:, 0] / np.linalg.norm(probe[:, 0]))
        basis = torch.cat([basis, fresh[:, None]], 1)
        rest = rest - torch.outer(rest @ fresh, fresh)
    expected = centred - centred @ basis @ basis.T + x.mean(0)
    torch.testing.assert_close(moved(eraser, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("min_r2", [0.0, 0.01])
@pytest.mark.parametrize("varying", [1, 2, 5])
def test_inlp_takes_no_direction_twice_where_features_never_vary(
    varying: int, min_r2: float
) -> None:
    draw = torch.Generator().manual_seed(varying)
    for scale in (1e-3, 1.0, 1e3):
        x = torch.full((40, WIDTH), 3.0, dtype=torch.float64)
        x[:, :varying] += scale * torch.randn(40, varying, generator=draw).double()
        z = (x[:, :1] > 3).double()
        eraser = inlp(JointMoments.of([(x, z)]), shrinkage=0.0, min_r2=min_r2)
        assert eraser.rank <= varying
        torch.testing.assert_close(
            eraser.read.T @ eraser.write, torch.eye(eraser.rank, dtype=torch.float64)
        )
        torch.testing.assert_close(moved(eraser, moved(eraser, x)), moved(eraser, x))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_safree_zeroes_what_the_concept_spans(seed: int) -> None:
    x, z, _ = data(seed)
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(WIDTH, 2, generator=draw).double()
    moments = JointMoments.of([(x, z)])
    whole = safree(vectors, moments, centre="origin")
    assert float((moved(whole, x) @ vectors).abs().max()) < 1e-8
    part = safree(vectors, moments, span=0.8)
    change = moved(part, x) - x
    spreads, axes = torch.linalg.eigh(moments.xx)
    outside = axes[:, (spreads.flip(0).cumsum(0) / spreads.sum() >= 0.8).flip(0).nonzero()[:-1, 0]]
    assert float((change @ outside).abs().max()) < 1e-8  # written within the data's span only


def dictionary(learner: str, seed: int = 0, **options: object) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(9, WIDTH, generator=draw), dim=1)
    tensors = {
        "atoms": atoms, "encoder_weight": torch.randn(9, WIDTH, generator=draw),
        "encoder_bias": torch.randn(9, generator=draw), "decoder_bias": torch.zeros(WIDTH),
    }  # fmt: skip
    return Dictionary(tensors, create(learner, options), Site("s", "m", "in", "pooled", WIDTH))


def test_an_affine_encoder_folds_exactly() -> None:
    x, _, _ = data(0)
    l1 = dictionary("l1")
    folded = fold_latents(l1, [2, 5], [x], to_mean=False)
    codes = l1.encode(x.float())[:, [2, 5]].double()
    expected = x - codes @ l1.atoms[[2, 5]].double()
    torch.testing.assert_close(moved(folded.map, x), expected, rtol=1e-5, atol=1e-4)
    assert folded.foldability.tolist() == [1, 1]
    kept = moved(fold_latents(l1, [2, 5], [x]).map, x)
    torch.testing.assert_close(kept.mean(0), x.mean(0))


@pytest.mark.parametrize("to_mean", [True, False])
def test_other_encoders_fold_by_least_squares(to_mean: bool) -> None:
    x, _, _ = data(1)
    topk = dictionary("topk", k=3)
    folded = fold_latents(topk, [1], [x], to_mean=to_mean)
    code = topk.encode(x.float())[:, 1].double()
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    weights = np.linalg.lstsq(design.numpy(), code.numpy(), rcond=None)[0]
    fitted = design @ torch.from_numpy(weights)
    removed = fitted - (code.mean() if to_mean else 0)
    expected = x - torch.outer(removed, topk.atoms[1].double())
    torch.testing.assert_close(moved(folded.map, x), expected, rtol=1e-6, atol=1e-6)
    r2 = 1 - float((code - fitted).var() / code.var())
    assert float(folded.foldability[0]) == pytest.approx(r2, abs=1e-9)


def test_posterior_attenuates_what_is_the_concepts() -> None:
    x, z, _ = data(2)
    has = z[:, 0] > 0
    l1 = dictionary("l1")
    folded = fold_posterior(l1, [4], [(x[:100], has[:100]), (x[100:], has[100:])])
    code = l1.encode(x.float())[:, 4].double()
    density = [
        torch.exp(-((code - code[group].mean()) ** 2) / (2 * code[group].var(correction=0)))
        / code[group].std(correction=0) * group.double().mean()
        for group in (has, ~has)
    ]  # fmt: skip
    removed = code * density[0] / (density[0] + density[1])
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    weights = np.linalg.lstsq(design.numpy(), removed.numpy(), rcond=None)[0]
    expected = x - torch.outer(design @ torch.from_numpy(weights), l1.atoms[4].double())
    torch.testing.assert_close(moved(folded.map, x), expected, rtol=1e-6, atol=1e-6)
    assert 0 < float(folded.foldability[0]) <= 1


@pytest.mark.parametrize("make", [leace, directional_ablation, inlp])
def test_a_constant_concept_is_refused(make: Callable[[JointMoments], LowRankMap]) -> None:
    x, _, _ = data(0)
    with pytest.raises(SalveError):
        make(JointMoments.of([(x, torch.ones(len(x), 1))]))


def test_bad_options_are_named() -> None:
    x, z, _ = data(0)
    moments = JointMoments.of([(x, z)])
    with pytest.raises(SalveError, match="shrinkage 2"):
        leace(moments, shrinkage=2.0)
    with pytest.raises(SalveError, match="iterations"):
        inlp(moments, iterations=0)
    with pytest.raises(SalveError, match="span"):
        safree(torch.ones(WIDTH, 1).double(), moments, span=0.0)
    for latents in ([], [9], [1, 1]):
        with pytest.raises(SalveError, match="latents"):
            fold_latents(dictionary("l1"), latents, [x])
    with pytest.raises(SalveError, match="have the concept"):
        fold_posterior(dictionary("l1"), [1], [(x, torch.ones(len(x)))])
