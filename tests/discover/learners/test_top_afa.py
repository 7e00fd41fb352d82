"""top-AFA: as many latents as give the code the row's norm."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.top_afa import TopAFA, chosen, count_kept
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError

ROWS, WIDTH, LATENTS = 16, 6, 10


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(learner: TopAFA) -> Tensors:
    """Tensors as after some training: encoder and decoder differ, b_d is not zero."""
    atoms = functional.normalize(randn(LATENTS, WIDTH), dim=1)
    t = learner.prepare(Start(randn(40, WIDTH, seed=1), atoms, 0.8, torch.Generator()))
    with torch.no_grad():
        t["encoder_weight"] += 0.1 * randn(LATENTS, WIDTH, seed=2)
        t["decoder_bias"] += 0.2 * randn(WIDTH, seed=3)
        learner.constrain(t)
    return t


def step(dead: Tensor | None = None) -> Step:
    none = torch.zeros(LATENTS, dtype=torch.bool)
    return Step(randn(ROWS, WIDTH, seed=5) / WIDTH**0.5, none if dead is None else dead)


def brute_force(h: list[float], norm: float) -> list[float]:
    """Return the code of one row by trying every K."""
    h = [max(0.0, each) for each in h]
    order = sorted(range(len(h)), key=lambda latent: -h[latent])
    gaps = [
        abs(sum(h[latent] ** 2 for latent in order[:k]) ** 0.5 - norm) for k in range(1, len(h) + 1)
    ]
    kept = order[: gaps.index(min(gaps)) + 1]
    return [h[latent] if latent in kept else 0.0 for latent in range(len(h))]


def test_the_code_is_the_best_of_all_k_by_brute_force() -> None:
    learner = TopAFA()
    t = {name: tensor.double() for name, tensor in learner.finished(prepared(learner)).items()}
    x = step().x.double()
    centred = x - t["decoder_bias"]
    expected = [
        brute_force(h, norm)
        for h, norm in zip(
            (centred @ t["encoder_weight"].T).tolist(), centred.norm(dim=1).tolist(), strict=True
        )
    ]
    code = learner.encode(t, x)
    torch.testing.assert_close(code, torch.tensor(expected, dtype=torch.float64))
    assert len(set((code > 0).sum(1).tolist())) > 1  # rows differ in how many they keep
    torch.testing.assert_close(code[4], learner.encode(t, x[4]))  # and do not depend on others


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0, 30), st.floats(0, 30))
def test_a_larger_norm_never_keeps_fewer(h: list[float], one: float, other: float) -> None:
    ordered = torch.tensor(sorted(h, reverse=True), dtype=torch.float64)
    few, many = (
        int(count_kept(ordered, torch.tensor(norm, dtype=torch.float64)))
        for norm in sorted((one, other))
    )
    assert 1 <= few <= many <= len(h)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 7), st.integers(0, 1000))
def test_orthonormal_atoms_keep_exactly_the_true_support(active: int, seed: int) -> None:
    atoms = torch.linalg.qr(randn(7, 7, seed=seed).double()).Q
    code = torch.zeros(7, dtype=torch.float64)
    code[:active] = 0.1 + randn(active, seed=seed).abs().double()
    t = {
        "atoms": atoms,
        "encoder_weight": atoms,
        "encoder_bias": torch.zeros(7, dtype=torch.float64),
        "decoder_bias": torch.zeros(7, dtype=torch.float64),
    }
    found = TopAFA().encode(t, code @ atoms)
    torch.testing.assert_close(found, code, rtol=1e-9, atol=1e-9)
    assert torch.equal(found > 1e-9, code > 0)


def test_only_positive_latents_are_kept() -> None:
    pre = torch.tensor([[-1.0, -2.0, -3.0], [1.0, -2.0, 0.5]])
    kept = chosen(pre, torch.tensor([5.0, 5.0]))
    assert kept.tolist() == [[False, False, False], [True, False, True]]


@pytest.mark.parametrize("afa", [0.0, 0.7])
def test_the_loss_and_its_gradients_are_those_of_the_dense_formula(afa: float) -> None:
    learner = TopAFA(afa=afa)
    t, now = prepared(learner), step()
    outcome = learner.loss(t, now)
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    assert len(trained) == 3
    gradients = torch.autograd.grad(outcome.loss, trained)

    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in t.items()}
    x = now.x.double()
    centred = x - wide["decoder_bias"]
    norm = centred.norm(dim=1).detach()
    pre = centred @ wide["encoder_weight"].T
    code = pre.relu() * chosen(pre.detach(), norm)
    error = (centred - code @ wide["atoms"]).square().sum(1)
    expected = (error + afa * (code.norm(dim=1) - norm).square()).mean()
    torch.testing.assert_close(outcome.loss.double(), expected, rtol=1e-5, atol=1e-6)
    leaves = [wide[name] for name, tensor in t.items() if tensor.requires_grad]
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(outcome.active, (code > 0).sum(0))


def test_dead_latents_learn_from_the_error() -> None:
    learner = TopAFA()
    t = prepared(learner)
    with torch.no_grad():
        t["encoder_weight"][3] = 0  # never positive, so never kept
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[3] = True
    for mask, learns in ((torch.zeros_like(dead), False), (dead, True)):
        loss = learner.loss(t, step(mask)).loss
        (gradient,) = torch.autograd.grad(loss, [t["encoder_weight"]])
        assert bool(gradient[3].any()) == learns


def test_the_encoder_bias_follows_the_decoder_bias() -> None:
    t = prepared(TopAFA())
    assert not t["encoder_bias"].requires_grad
    torch.testing.assert_close(t["encoder_bias"], -(t["encoder_weight"] @ t["decoder_bias"]))


def test_a_fitted_dictionary_makes_codes_as_long_as_the_rows() -> None:
    """The scale and the mean of the data are folded in: codes are as long as raw centred rows."""
    atoms = functional.normalize(randn(12, 16), dim=1)
    on = torch.rand(3000, 12, generator=torch.Generator().manual_seed(1)) < 0.15
    x = 5 * (on * (0.5 + randn(3000, 12, seed=2).abs())) @ atoms + 3
    dictionary = fit(x, "top_afa", n_latents=12, steps=150, learning_rate=2e-2, batch_size=64)
    norm = (x - dictionary.decoder_bias).norm(dim=1)
    length = dictionary.encode(x).norm(dim=1)
    assert float(torch.corrcoef(torch.stack([norm, length]))[0, 1]) > 0.9
    assert dictionary.meta["l0"] < 8  # type: ignore[operator] # JSON


def test_scale_and_mean_fold_into_the_tensors_exactly(
    check_fold: Callable[[Learner, Tensors, Tensor], None],
) -> None:
    learner = TopAFA()
    check_fold(learner, learner.finished(prepared(learner)), step().x)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="afa must be"):
        TopAFA(afa=-0.1)
    with pytest.raises(InputError, match="k_aux must be a whole number"):
        TopAFA(k_aux=0)
