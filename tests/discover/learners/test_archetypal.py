"""RA-SAE: mixtures stay mixtures, atoms lie in the cone of data, and seeds agree."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.archetypal import Archetypal, built, mixtures
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.errors import InputError
from salve_plugin.validate.stability import stability

HalfTrained = Callable[..., tuple[Tensors, Step]]
Train = Callable[..., Dictionary]


def start(latents: int = 6, rows: int = 40, width: int = 5) -> Start:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=random) / width**0.5
    return Start(x, functional.normalize(x[:latents]), 1.0, random)


def moved(learner: Archetypal, size: float = 3.0) -> Tensors:
    """Return tensors after a large and random optimizer step."""
    t = learner.prepare(start())
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in ("weights", "relaxation"):
            t[name] += size * torch.randn(t[name].shape, generator=random)
        learner.constrain(t)
    return t


@pytest.mark.parametrize("delta", [0.0, 0.1, 2.0])
def test_after_a_step_atoms_are_mixtures_and_a_little_more(delta: float) -> None:
    t = moved(Archetypal(k=2, delta=delta))
    mixed = mixtures(t).detach()
    assert bool((mixed >= 0).all())
    torch.testing.assert_close(mixed.sum(1), torch.ones(6))
    norms = t["relaxation"].detach().norm(dim=1)
    assert float(norms.max()) <= delta * (1 + 1e-6)
    expected = mixed @ t["points"] + t["relaxation"].detach()
    torch.testing.assert_close(t["atoms"], functional.normalize(expected))
    assert not t["atoms"].requires_grad


def test_what_is_allowed_is_left_alone() -> None:
    learner = Archetypal(k=2)
    t = moved(learner)
    before = {name: value.detach().clone() for name, value in t.items()}
    learner.constrain(t)
    for name, value in before.items():
        torch.testing.assert_close(t[name].detach(), value)


def test_an_atom_that_loses_all_its_points_gets_its_own_back() -> None:
    learner = Archetypal(k=2)
    t = learner.prepare(start())
    with torch.no_grad():
        t["weights"][3] = -1.0
        learner.constrain(t)
    assert mixtures(t)[3].tolist() == [0, 0, 0, 1] + [0] * 8
    torch.testing.assert_close(t["atoms"][3], t["points"][3])


def test_atoms_start_as_the_initial_ones_and_points_are_directions_of_rows() -> None:
    begin = start()
    t = Archetypal(k=2, points=20).prepare(begin)
    torch.testing.assert_close(built(t), begin.atoms)
    assert t["points"].shape == (20, 5)
    directions = functional.normalize(begin.rows)
    nearest = (t["points"] @ directions.T).max(1)
    torch.testing.assert_close(nearest.values, torch.ones(20))
    assert len(set(nearest.indices.tolist())) == 20
    assert len(Archetypal(k=2, points=99).prepare(begin)["points"]) == 6 + 40


def test_without_relaxation_atoms_lie_in_the_cone_of_the_points() -> None:
    from scipy.optimize import nnls

    def outside(t: Tensors) -> list[float]:
        points = t["points"].double().numpy().T
        return [nnls(points, atom.double().numpy())[1] for atom in t["atoms"]]

    first = functional.one_hot(torch.tensor(0), 5)
    cone = start()
    # Points on one side only: else their cone is the whole space, and the check could not fail.
    rows = functional.normalize(cone.rows) + 1.5 * first
    narrow = Start(rows, functional.normalize(rows[:6]), 1.0, cone.random)
    for delta, within in ((0.0, True), (0.5, False)):
        learner = Archetypal(k=2, delta=delta)
        t = learner.prepare(narrow)
        with torch.no_grad():
            random = torch.Generator().manual_seed(1)
            t["weights"] += 3 * torch.randn(t["weights"].shape, generator=random)
            t["relaxation"] -= 3.0 * first
            learner.constrain(t)
        assert (max(outside(t)) < 1e-6) == within


def test_the_gradients_reach_mixtures_and_relaxation(half_trained: HalfTrained) -> None:
    learner = Archetypal(k=3)
    t, step = half_trained(learner)
    raw = t["weights"] / 10 @ t["points"] + t["relaxation"]
    atoms = raw / raw.norm(dim=1, keepdim=True)
    formula = TopK(k=3).loss({**t, "atoms": atoms}, step).loss
    loss = learner.loss(t, step).loss
    torch.testing.assert_close(loss, formula)
    trained = [value for value in t.values() if value.requires_grad]
    assert len(trained) == 5
    torch.testing.assert_close(
        torch.autograd.grad(loss, trained), torch.autograd.grad(formula, trained)
    )
    assert bool(torch.autograd.grad(learner.loss(t, step).loss, t["weights"])[0].any())


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(Archetypal(k=3))


def test_planted_atoms_are_found(train: Train, flat: Any) -> None:
    found = train(Archetypal(k=2), flat.rows, steps=300, learning_rate=0.03)
    assert float((flat.cosines(found.atoms) > 0.9).double().mean()) > 0.85


def hardly_sparse() -> Tensor:
    """Return rows of no planted dictionary, on which runs of TopK disagree."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=random) * torch.linspace(1.5, 0.3, 12)
    return torch.tanh(torch.randn(2000, 12, generator=random) @ mixing)


@pytest.mark.slow
def test_seeds_agree_better_than_those_of_topk_at_about_the_same_error(train: Train) -> None:
    """Both start from the same atoms, which the points keep the archetypes near."""
    rows = hardly_sparse()
    agreement, r2 = {}, {}
    for learner in (TopK(k=4), Archetypal(k=4)):
        runs = [
            train(
                learner, rows, n_latents=24, steps=300, learning_rate=0.03,
                seed=seed, initialization="kmeans",
            )
            for seed in (0, 1, 2)
        ]  # fmt: skip
        atoms = [run.atoms for run in runs]
        agreement[learner.name] = stability(atoms[0], atoms[1:], signed=True).cosine
        r2[learner.name] = sum(run.meta["held_out_r2"] for run in runs) / 3  # type: ignore[misc] # numbers
    assert agreement["archetypal"] > agreement["topk"] + 0.03
    assert r2["archetypal"] > r2["topk"] - 0.02


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="delta must be a finite number"):
        Archetypal(delta=-0.1)
    with pytest.raises(InputError, match="5 points are too few for 6 atoms"):
        Archetypal(k=2, points=5).prepare(start())
    with pytest.raises(InputError, match="k = 7"):
        Archetypal(k=7).prepare(start())


def test_the_cone_check_can_fail() -> None:
    from scipy.optimize import nnls

    assert nnls(np.eye(2), np.array([1.0, -1.0]))[1] == pytest.approx(1.0)
