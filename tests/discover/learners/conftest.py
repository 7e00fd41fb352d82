"""Planted dictionaries, tensors in the middle of training, and fits that tests share."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import register
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.relu_l1 import SPARSITY_WARM_UP
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.folding import folded


@dataclass(frozen=True, eq=False)
class Planted:
    """Rows that are known to mix a few atoms each, plus a little noise.

    Attributes:
        rows: (rows, width).
        truth: unit atoms (atoms, width).
        codes: how much of each atom is in each row (rows, atoms).
    """

    rows: Tensor
    truth: Tensor
    codes: Tensor

    def cosines(self, found: Tensor, signed: bool = False) -> Tensor:
        """Return for each true atom the cosine of the nearest found one, up to sign if signed."""
        cosines = self.truth @ found.T
        return (cosines.abs() if signed else cosines).max(1).values


def _planted(atoms: int, width: int, seed: int) -> tuple[Tensor, torch.Generator]:
    random = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(atoms, width, generator=random), dim=1), random


def _mixed(codes: Tensor, truth: Tensor, random: torch.Generator) -> Planted:
    rows = codes @ truth
    return Planted(rows + 0.01 * torch.randn(rows.shape, generator=random), truth, codes)


@pytest.fixture(scope="session")
def flat() -> Planted:
    """3000 rows of 30 atoms in 20 dimensions, two in a row on average, sizes 0.5 to 1.5."""
    truth, random = _planted(30, 20, 0)
    on = torch.rand(3000, 30, generator=random) < 2 / 30
    return _mixed(on * (0.5 + torch.rand(3000, 30, generator=random)), truth, random)


@pytest.fixture(scope="session")
def signed(flat: Planted) -> Planted:
    """The same atoms, each as often in the opposite direction."""
    random = torch.Generator().manual_seed(1)
    signs = torch.randn(flat.codes.shape, generator=random).sign()
    return _mixed(flat.codes * signs, flat.truth, random)


@pytest.fixture(scope="session")
def hierarchical() -> Planted:
    """Rows with each of 4 parents one time in five, and then three times in four with a child.

    The parents are the first four atoms; parent i has the four children from 4 + 4 i on.
    """
    truth, random = _planted(20, 20, 2)
    parents = torch.rand(3000, 4, generator=random) < 0.2
    chosen = functional.one_hot(torch.randint(4, (3000, 4), generator=random), 4)
    with_child = parents & (torch.rand(3000, 4, generator=random) < 0.75)
    children = (chosen * with_child[:, :, None]).flatten(1)
    sizes = 0.7 + 0.6 * torch.rand(3000, 20, generator=random)
    return _mixed(torch.cat([parents, children], 1) * sizes, truth, random)


@pytest.fixture(scope="session")
def train() -> Callable[..., Dictionary]:
    """Fit a learner to rows; without other arguments 30 latents in 600 steps of 256 rows."""

    def train(learner: Learner, rows: Tensor, **arguments: Any) -> Dictionary:
        register(type(learner))
        defaults = {"n_latents": 30, "steps": 600, "batch_size": 256, "learning_rate": 0.01}
        options: dict[str, Any] = asdict(learner)
        return fit(rows, learner.name, **defaults | arguments | options)

    return train


@pytest.fixture(scope="session")
def half_trained() -> Callable[..., tuple[Tensors, Step]]:
    """Return a learner's tensors in float64 away from where they start, and a batch for them."""

    def half_trained(
        learner: Learner, latents: int = 12, width: int = 5, seed: int = 0, rows: int = 20
    ) -> tuple[Tensors, Step]:
        atoms, random = _planted(latents, width, seed)
        x = torch.randn(rows, width, generator=random) / width**0.5
        tensors = {}
        for name, start in learner.prepare(Start(x, atoms, 0.7, random)).items():
            moved = start.detach().double()
            moved += 0.1 * torch.randn(start.shape, generator=random)
            if name == "atoms":
                moved = functional.normalize(moved, dim=1)
            tensors[name] = moved.requires_grad_(start.requires_grad)
        dead = torch.zeros(latents, dtype=torch.bool)
        return tensors, Step(x.double(), dead, progress=0.5)

    return half_trained


@pytest.fixture(scope="session")
def check_fold() -> Callable[[Learner, Tensors, Tensor], None]:
    """Check that the dictionary of raw rows says what that of scaled rows says, in float64."""

    def check(learner: Learner, finished: Tensors, x: Tensor) -> None:
        t, x = {name: value.double() for name, value in finished.items()}, x.double()
        code = learner.encode(t, x)
        assert 0 < int((code != 0).sum()) < code.numel()
        mean = torch.linspace(-3, 3, x.shape[1], dtype=torch.float64)
        raw = folded(learner, t, mean, 7.3)
        torch.testing.assert_close(learner.encode(raw, 7.3 * x + mean), 7.3 * code)
        torch.testing.assert_close(
            learner.decode(raw, learner.encode(raw, 7.3 * x + mean)),
            7.3 * learner.decode(t, code) + mean,
        )

    return check


@pytest.fixture(scope="session")
def check_inference(
    half_trained: Callable[..., tuple[Tensors, Step]],
    check_fold: Callable[[Learner, Tensors, Tensor], None],
) -> Callable[[Learner], None]:
    """Check what every code must satisfy: fold, batch and order of latents make no difference."""

    def check(learner: Learner) -> None:
        trained, step = half_trained(learner)
        t, x = learner.finished(trained), step.x
        code = learner.encode(t, x)
        check_fold(learner, t, x)

        alone = torch.cat([learner.encode(t, row[None]) for row in x])
        torch.testing.assert_close(alone, code)
        torch.testing.assert_close(learner.encode(t, x.view(4, 5, -1)), code.view(4, 5, -1))

        order = torch.randperm(len(t["atoms"]), generator=torch.Generator().manual_seed(0))
        of_latents = {name for name in t if name != "decoder_bias"}
        moved = {name: t[name][order] if name in of_latents else t[name] for name in t}
        torch.testing.assert_close(learner.encode(moved, x), code[:, order])

    return check


@pytest.fixture(scope="session")
def check_warm_up(
    half_trained: Callable[..., tuple[Tensors, Step]],
) -> Callable[[Learner, Learner], None]:
    """Check that the penalty of a learner, which another has not, rises from 0 to its weight."""

    def check(penalized: Learner, free: Learner) -> None:
        t, step = half_trained(penalized)

        def penalty(progress: float) -> float:
            at = replace(step, progress=progress)
            return float((penalized.loss(t, at).loss - free.loss(t, at).loss).detach())

        assert penalty(0.0) == pytest.approx(0, abs=1e-12)
        assert penalty(SPARSITY_WARM_UP / 4) == pytest.approx(penalty(0.9) / 4)
        assert penalty(SPARSITY_WARM_UP) == pytest.approx(penalty(0.9)) != 0

    return check
