"""Fitting: recovery of a planted dictionary, what is held out, determinism, refusals."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.fit import fit as fit_any
from salve_plugin.discover.training.rows import Moments, RowReader, held_out
from salve_plugin.errors import InputError
from salve_plugin.site import Site

MakeRecording = Callable[..., Activations]

fit = partial(fit_any, learner="l1")
"""The paper's learner: it is the simplest, and what is tested here holds for all."""


def planted(rows: int = 4000, width: int = 16) -> tuple[Tensor, Tensor]:
    """Return rows that mix two unit atoms on average, of as many as features, and the atoms."""
    random = torch.Generator().manual_seed(0)
    truth = functional.normalize(torch.randn(width, width, generator=random), dim=1)
    on = torch.rand(rows, width, generator=random) < 2 / width
    sizes = 0.5 + torch.rand(rows, width, generator=random)
    signs = torch.randn(rows, width, generator=random).sign()
    noise = 0.01 * torch.randn(rows, width, generator=random)
    return (on * sizes * signs) @ truth + noise, truth


def best_cosines(found: Tensor, truth: Tensor) -> Tensor:
    """Return for each true atom the cosine of the nearest found one, up to sign."""
    return (truth @ found.T).abs().max(1).values


def test_a_planted_dictionary_is_found_and_random_atoms_are_not() -> None:
    """Mean cosine 0.95 with the true atoms; principal axes and random atoms reach half of it."""
    rows, truth = planted(width=24)
    random = torch.randn(24, 24, generator=torch.Generator().manual_seed(1))
    found = fit(rows, n_latents=24, steps=1500, learning_rate=0.02).atoms
    assert best_cosines(found, truth).mean() > 0.9
    assert best_cosines(functional.normalize(random, dim=1), truth).mean() < 0.6
    assert best_cosines(torch.linalg.svd(rows, full_matrices=False).Vh, truth).mean() < 0.6


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_the_unit_of_the_activations_does_not_matter(factor: float) -> None:
    rows, _ = planted(rows=500)
    one, other = fit(rows, steps=50), fit(factor * rows, steps=50)
    torch.testing.assert_close(other.atoms, one.atoms, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        other.encode(factor * rows) / factor, one.encode(rows), rtol=1e-3, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore:the dictionary reconstructs")
@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_no_learner_leaves_the_range_of_numbers_with_units_that_have_a_square_beyond_it(
    learner: str,
) -> None:
    """Powers of two, which change no digit: the same code and reconstruction come out."""
    rows, _ = planted(rows=300, width=8)
    options: dict[str, Any] = {"beta": 0.0} if learner == "gradient_topk" else {}
    one = fit_any(rows, learner, n_latents=32, steps=3, **options)
    for factor in (2.0**-90, 2.0**90):
        other = fit_any(factor * rows, learner, n_latents=32, steps=3, **options)
        code = other.encode(factor * rows)
        back = other.decode(code) / factor
        torch.testing.assert_close(back, one.decode(one.encode(rows)), rtol=1e-3, atol=1e-3)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """A million times the spread is as much as float32 rows can have and still vary."""
    rows, _ = planted(rows=500)
    rows = (rows + 1e6).float()
    kept = rows[~held_out(torch.arange(500))].double()
    moments = Moments.of(RowReader(rows, None))
    exact = (kept - kept.mean(0)).square().sum(1).mean().sqrt()
    assert moments.scale == pytest.approx(float(exact), rel=1e-9)
    torch.testing.assert_close(moments.mean, kept.mean(0).float(), rtol=1e-7, atol=0)


def test_training_lowers_the_loss_and_keeps_atoms_at_unit_norm() -> None:
    rows, _ = planted(rows=1000)
    scale = Moments.of(RowReader(rows, None)).scale

    def loss(dictionary: Dictionary) -> float:
        code = dictionary.encode(rows)
        error = (rows - dictionary.decode(code)).square().sum(1) / scale**2
        return float((error + 0.1 * code.abs().sum(1) / scale).mean())

    short, long = fit(rows, steps=1, n_latents=8), fit(rows, steps=400, n_latents=8)
    assert loss(long) < 0.9 * loss(short)
    torch.testing.assert_close(long.atoms.norm(dim=1), torch.ones(8), rtol=0, atol=1e-5)


def test_a_larger_penalty_gives_smaller_codes_and_a_worse_reconstruction() -> None:
    rows, _ = planted(rows=1000)
    fits = [fit(rows, l1=weight, n_latents=16, steps=300) for weight in (0.0, 0.1, 1.0)]
    sizes = [float(dictionary.encode(rows).abs().sum(1).mean()) for dictionary in fits]
    r2 = [dictionary.meta["held_out_r2"] for dictionary in fits]
    assert sizes == sorted(sizes, reverse=True)
    assert r2 == sorted(r2, reverse=True)  # type: ignore[type-var] # meta holds plain values


def test_without_penalty_it_reaches_the_best_linear_reconstruction() -> None:
    """That of principal components (Eckart and Young), here of the training rows."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(800, 10, generator=random) * torch.linspace(3, 0.3, 10) + 5
    kept = rows[~held_out(torch.arange(800))]
    variance = torch.linalg.svdvals(kept - kept.mean(0)).square()
    dictionary = fit(rows, l1=0.0, n_latents=4, steps=1500)
    best = float(variance[:4].sum() / variance.sum())
    assert dictionary.meta["train_r2"] == pytest.approx(best, abs=2e-3)


def test_reported_quality_agrees_with_a_brute_force_computation(
    make_recording: MakeRecording,
) -> None:
    rows, _ = planted(rows=700)
    dictionary = fit(make_recording(rows, torch.arange(700) % 2, shard_rows=90), steps=60)
    apart = held_out(torch.arange(700))
    meta = dictionary.meta
    for part, name in ((rows[~apart], "train_r2"), (rows[apart], "held_out_r2")):
        error = (part.double() - dictionary(part).double()).square().sum()
        spread = (part.double() - part.double().mean(0)).square().sum()
        assert meta[name] == pytest.approx(float(1 - error / spread), abs=1e-6)
    centred = rows[~apart].double() - rows[~apart].double().mean(0)
    scale = float(centred.square().sum(1).mean().sqrt())
    assert meta["scale"] == pytest.approx(scale, rel=1e-6)
    on = dictionary.encode(rows).abs() > 0.01 * scale
    assert meta["l0"] == pytest.approx(float(on[apart].sum(1).float().mean()))
    assert meta["dead_share"] == pytest.approx(float((~on[~apart].any(0)).float().mean()))
    assert meta["held_out_rows"] == int(apart.sum())
    assert (meta["n_images"], meta["n_rows"]) == (700, 700)


def test_one_image_in_ten_is_held_out_of_every_class_sorted_or_interleaved() -> None:
    apart = held_out(torch.arange(10_000))
    assert 980 <= int(apart.sum()) <= 1020
    for labels in (torch.arange(10_000) // 1000, torch.arange(10_000) % 10):
        shares = [float(apart[labels == label].float().mean()) for label in range(10)]
        assert 0.07 < min(shares) <= max(shares) < 0.13


def test_what_is_held_out_does_not_influence_training() -> None:
    rows, _ = planted(rows=300)
    other = rows.clone()
    other[held_out(torch.arange(300))] *= -5
    assert torch.equal(fit(rows, steps=20).atoms, fit(other, steps=20).atoms)


def test_the_same_seed_gives_the_same_dictionary_and_another_seed_another(
    make_recording: MakeRecording,
) -> None:
    rows, _ = planted(rows=600)
    acts = make_recording(rows, torch.arange(600) % 3, shard_rows=100)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = fit(acts, steps=40, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert fit(acts, steps=40, seed=3).digest == first.digest
    assert fit(acts, steps=40, seed=4).digest != first.digest


def test_it_can_be_called_without_gradients() -> None:
    rows, _ = planted(rows=200)
    expected = fit(rows, steps=5)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            dictionary = fit(rows.clone(), steps=5)
        assert dictionary.digest == expected.digest
        x = rows[:1].clone().requires_grad_()
        dictionary.encode(x).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped


def test_equal_rows_do_not_give_equal_atoms() -> None:
    rows, _ = planted(rows=200)
    rows[20:] = rows[0]
    atoms = fit(rows, n_latents=10, steps=50).atoms
    assert len({tuple(atom.tolist()) for atom in atoms}) == 10


def test_a_site_can_be_named_for_rows_in_memory() -> None:
    site = Site("unembed.hook_in", "fc", "in", "pooled", 16, readers=("fc",))
    rows, _ = planted(rows=100)
    assert fit(rows, steps=1, site=site).site == site
    with pytest.raises(InputError, match=r"do not fit site 'unembed\.hook_in', which has 16"):
        fit(rows[:, :5], steps=1, site=site)


def test_the_default_size_is_half_the_width_or_half_the_rows() -> None:
    rows, _ = planted(rows=100)
    assert fit(rows, steps=1).n_latents == 8
    assert fit(rows[:12], steps=1).n_latents == 5  # eleven rows to train on, one held out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"learner": "top"}, r"no learner 'top'; choose one of \[.*'topk'"),
        ({"k": 3}, r"no options \['k'\]"),
        ({"l1": -1.0}, "l1 must be a finite number"),
        ({"n_latents": 0}, "n_latents must be a whole number of at least 1, got 0"),
        ({"n_latents": 94}, "93 training rows are too few for 94 latents"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0"),
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, object], complaint: str) -> None:
    rows, _ = planted(rows=103)
    rows = rows[:103]
    with pytest.raises(InputError, match=complaint):
        fit(rows, **change)  # type: ignore[arg-type] # wrong on purpose


def test_another_default_number_type_is_refused() -> None:
    rows, _ = planted(rows=100)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(InputError, match=r"default number type is torch\.float64"):
            fit(rows, steps=1)
    finally:
        torch.set_default_dtype(torch.float32)


def test_activations_that_nothing_can_be_learned_from_are_refused(
    make_recording: MakeRecording,
) -> None:
    with pytest.raises(InputError, match="are constant"):
        fit(torch.full((50, 4), 0.1))
    with pytest.raises(InputError, match="are constant"):
        fit(make_recording(torch.zeros(50, 4), torch.arange(50) % 2))
    for bad in (float("nan"), float("inf")):
        for row in (7, 8):  # the second is held out: it must not wait until all is done
            rows = torch.randn(50, 4)
            rows[row, 2] = bad
            with pytest.raises(InputError, match=f"hold NaN or infinite values: row {row} is"):
                fit(rows)
    with pytest.raises(InputError, match=r"real numbers, got torch\.complex64"):
        fit(torch.randn(50, 4, dtype=torch.complex64))
    with pytest.raises(InputError, match=r"dense tensor of real numbers, got torch\.float32 of"):
        fit(torch.eye(50, 4).to_sparse())
    with pytest.raises(InputError, match=r"must be \(rows, width\), got shape \(50, 0\)"):
        fit(torch.randn(50, 0))
    with pytest.raises(InputError, match="1 training rows are too few"):
        fit(torch.randn(1, 4))
    with pytest.raises(InputError, match=r"must be \(rows, width\), got shape \(4,\)"):
        fit(torch.randn(4))


WRONG = """
import numpy as np
import torch
from salve_plugin.discover.sweep import sweep
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError

rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
dictionary = fit(rows, "topk", k=1, steps=1, learning_rate=0.01)
calls = (
    lambda: fit(rows.numpy()),
    lambda: fit(rows.tolist()),
    lambda: fit(rows, seed=1.5),
    lambda: fit(rows, seed="0"),
    lambda: fit(rows, seed=True),
    lambda: fit(rows, seed=2**41),
    lambda: fit(rows, train_atoms="no"),
    lambda: fit(rows, n_latents=2.0),
    lambda: fit(rows, target_l0="3"),
    lambda: sweep(rows, "topk", {"k": 8}),
    lambda: dictionary.encode(rows.numpy()),
)
for number, call in enumerate(calls):
    try:
        call()
    except InputError as error:
        print(error)
    else:
        raise AssertionError(f"call {number} was taken")
"""


def test_arguments_of_wrong_types_are_refused_and_never_crash() -> None:
    """In a process of its own: here every call's types are checked before our checks run."""
    done = subprocess.run(
        [sys.executable, "-c", WRONG], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert "got ndarray; torch.as_tensor makes a tensor" in messages[0]
    assert "seed must be a whole number between" in messages[5]
    assert len(messages) == 11


def test_seeds_are_whole_numbers_that_leave_room_for_steps() -> None:
    rows, _ = planted(rows=60)
    for seed in (-(2**40), 2**40):
        assert fit(rows, steps=1, seed=seed).meta["seed"] == seed
    with pytest.raises(InputError, match="seed must be a whole number between"):
        fit(rows, steps=1, seed=2**40 + 1)


def test_a_dictionary_worse_than_the_mean_row_comes_with_a_warning() -> None:
    """Here because steps of that size do not converge, though nothing is infinite."""
    rows, _ = planted(rows=200)
    with pytest.warns(UserWarning, match=r"reconstructs its training rows worse than their mean"):
        fit(rows, steps=10, learning_rate=1e6)


def test_a_dictionary_without_a_living_latent_comes_with_a_warning() -> None:
    """Thresholds only rise under such a penalty."""
    rows, _ = planted(rows=200)
    with pytest.warns(UserWarning, match=r"no training row activates any latent"):
        found = fit_any(rows, "jumprelu", steps=60, l0=1e4, learning_rate=0.03, n_latents=8)
    assert found.meta["dead_share"] == 1


def test_a_fifth_of_dead_latents_comes_with_a_warning() -> None:
    """With k = 1, few steps and nothing that brings dead latents back."""
    random = torch.Generator().manual_seed(0)
    rows = functional.normalize(torch.randn(4, 16, generator=random), dim=1).repeat(100, 1)
    rows = rows + 0.05 * torch.randn(rows.shape, generator=random)
    with pytest.warns(UserWarning, match=r"\d+% of the latents are dead.*fewer n_latents"):
        found = fit_any(
            rows, "topk", k=1, aux=0.0, steps=60, learning_rate=0.02, n_latents=64,
            initialization="random",
        )  # fmt: skip
    assert 0.2 <= float(found.meta["dead_share"]) < 1  # type: ignore[arg-type] # a number


def test_rows_that_are_known_by_heart_come_with_a_warning_and_rows_enough_with_none() -> None:
    """As many atoms as training rows, in noise: each row has an atom, and no new row has one."""
    random = torch.Generator().manual_seed(0)
    few, many = (torch.randn(n, 64, generator=random) for n in (120, 3000))
    with pytest.warns(UserWarning, match=r"less on held-out rows.*record more images"):
        found = fit_any(few, "topk", n_latents=100, k=2, steps=200, learning_rate=0.01)
    held_out_r2, train_r2 = (float(found.meta[name]) for name in ("held_out_r2", "train_r2"))  # type: ignore[arg-type] # numbers
    assert held_out_r2 < train_r2 - 0.1
    fit_any(many, "topk", n_latents=64, k=2, steps=50, learning_rate=0.01)  # or a test error


def test_by_default_it_is_a_matching_pursuit_of_a_size_that_suits_the_rows() -> None:
    rows, _ = planted(rows=3000, width=12)
    found = fit_any(rows, steps=60)
    assert (found.learner, found.n_latents) == ("mp", 48)
    assert found.options["k"] == 1  # at most an eighth of the width, if nobody says
    assert found.meta["l0"] == pytest.approx(1)
    assert fit_any(rows, steps=1, n_latents=3).options["k"] == 1
    assert fit_any(rows, steps=1, k=9).options["k"] == 9


def overcomplete(width: int, atoms: int, active: int, rows: int = 3000) -> tuple[Tensor, Tensor]:
    """Return rows of so many active atoms on average, more of them than features, and the atoms."""
    random = torch.Generator().manual_seed(0)
    truth = functional.normalize(torch.randn(atoms, width, generator=random), dim=1)
    on = torch.rand(rows, atoms, generator=random) < active / atoms
    code = on * (0.5 + torch.rand(rows, atoms, generator=random))
    return code @ truth + 0.02 * torch.randn(rows, width, generator=random), truth


@pytest.mark.parametrize(("learner", "n_latents"), [("topk", 128), ("gated", 64)])
def test_a_learner_left_to_itself_finds_the_atoms_of_a_narrow_site(
    learner: str, n_latents: int
) -> None:
    """With k = 16 of 32 features TopK found a tenth of them; with a weak penalty Gated none."""
    rows, truth = overcomplete(32, 64, 3)
    found = fit_any(rows, learner, n_latents=n_latents, learning_rate=0.02)
    assert ((truth @ found.atoms.T).max(1).values > 0.9).float().mean() > 0.9


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    st.sampled_from(["l1", "relu_l1", "topk", "gated"]), st.sampled_from([0.0, 3.0, 30.0, 100.0])
)  # fmt: skip
def test_where_the_rows_lie_makes_no_difference(learner: str, ratio: float) -> None:
    """The mean is `ratio` times as long as the rows' distance from it is on average."""
    rows, _ = planted(rows=600)
    spread = rows.square().sum(1).mean().sqrt()
    shift = ratio * spread * functional.normalize(torch.linspace(1, 2, rows.shape[1]), dim=0)
    options: dict[str, int] = {"k": 2} if learner == "topk" else {}
    arguments: dict[str, Any] = {"n_latents": 16, "steps": 60, "learning_rate": 5e-3, **options}
    here = fit_any(rows, learner, **arguments)
    there = fit_any(rows + shift, learner, **arguments)
    # float32 rows keep fewer digits of what varies, the farther they lie from zero.
    torch.testing.assert_close(there.atoms, here.atoms, rtol=0, atol=2e-3)
    assert there.meta["held_out_r2"] == pytest.approx(here.meta["held_out_r2"], abs=5e-3)


def test_a_recording_knows_its_site(make_recording: MakeRecording) -> None:
    acts = make_recording(torch.randn(50, 4), torch.arange(50) % 2)
    assert fit(acts, steps=1, site=acts.site).site == acts.site
    with pytest.raises(InputError, match=r"the recording is of site 'unembed\.hook_in'"):
        fit(acts, site=Site("other", "fc", "in", "pooled", 4))


def test_the_digits_networks_are_reconstructed_by_the_default(
    digits_recording: Activations,
) -> None:
    dictionary = fit(digits_recording)
    assert dictionary.n_latents == digits_recording.width // 2
    meta = dictionary.meta
    held_out_r2, train_r2 = meta["held_out_r2"], meta["train_r2"]
    assert isinstance(held_out_r2, float)
    assert isinstance(train_r2, float)
    assert held_out_r2 > 0.94
    assert abs(held_out_r2 - train_r2) < 0.01
    assert meta["dead_share"] == 0
