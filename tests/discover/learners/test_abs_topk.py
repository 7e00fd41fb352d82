"""AbsTopK: signs, exact sparsity, recovery of signed codes where TopK fails, revival."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.learners.abs_topk import AbsTopK
from salve_plugin.discover.learners.base import Learner, Start, Step, Tensors
from salve_plugin.discover.learners.topk import TopK

if TYPE_CHECKING:
    from tests.discover.learners.conftest import Planted

HalfTrained = Callable[..., tuple[Tensors, Step]]


def test_codes_depend_on_nothing_but_their_row(check_inference: Callable[[Learner], None]) -> None:
    check_inference(AbsTopK(k=3))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    rows=st.integers(1, 6), latents=st.integers(1, 9), k=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_a_row_keeps_the_k_of_largest_size_with_their_signs(
    rows: int, latents: int, k: int, seed: int
) -> None:
    pre = torch.randn(rows, latents, generator=torch.Generator().manual_seed(seed))
    for before, after in zip(pre, AbsTopK(k=k).activate({}, pre), strict=True):
        kept = sorted(before.tolist(), key=abs, reverse=True)[:k]
        assert sorted(after[after != 0].tolist(), key=abs, reverse=True) == kept


def test_opposite_rows_have_opposite_codes_if_there_is_no_bias(half_trained: HalfTrained) -> None:
    """About the data's mean, which the fold puts at the middle."""
    learner = AbsTopK(k=3)
    t, step = half_trained(learner)
    t["encoder_bias"] = torch.zeros(12).double()
    assert torch.equal(learner.encode(t, -step.x), -learner.encode(t, step.x))


def test_the_loss_and_its_gradients_are_those_of_its_formula(half_trained: HalfTrained) -> None:
    learner = AbsTopK(k=3)
    t, step = half_trained(learner)
    code = learner.encode(t, step.x)
    assert 0 < int((code < 0).sum()) < int((code != 0).sum()) == 3 * len(step.x)
    formula = (step.x - learner.decode(t, code)).square().sum(1).mean()
    outcome = learner.loss(t, step)
    torch.testing.assert_close(outcome.loss, formula)
    assert outcome.active.tolist() == (code != 0).sum(0).tolist()
    trained = [tensor for tensor in t.values() if tensor.requires_grad]
    torch.testing.assert_close(
        torch.autograd.grad(outcome.loss, trained), torch.autograd.grad(formula, trained)
    )


@pytest.mark.slow
def test_signed_codes_are_recovered_and_topk_does_not_recover_them(
    train: Callable[..., Dictionary], signed: "Planted"
) -> None:
    """TopK would need twice as many latents, one for each direction."""
    one, other = train(AbsTopK(k=2), signed.rows), train(TopK(k=2), signed.rows)
    assert float((signed.cosines(one.atoms, signed=True) > 0.9).float().mean()) > 0.8
    assert float((signed.cosines(other.atoms, signed=True) > 0.9).float().mean()) < 0.6
    assert float(one.meta["held_out_r2"]) > float(other.meta["held_out_r2"]) + 0.1  # type: ignore[arg-type] # numbers


@pytest.mark.slow
def test_codes_of_one_sign_are_recovered_too(
    train: Callable[..., Dictionary], flat: "Planted"
) -> None:
    found = train(AbsTopK(k=2), flat.rows)
    assert float((flat.cosines(found.atoms, signed=True) > 0.9).float().mean()) > 0.6


@dataclass(frozen=True)
class Faint(AbsTopK):
    """AbsTopK whose first latent starts far too small to be among the largest."""

    name: ClassVar[str] = "faint"

    def prepare(self, start: Start) -> Tensors:
        t = super().prepare(start)
        with torch.no_grad():
            t["encoder_weight"][0] *= 1e-3
        return t


def test_a_faint_latent_comes_alive_with_the_auxiliary_loss_and_not_without(
    train: Callable[..., Dictionary], signed: "Planted", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEARNERS, "faint", Faint)

    def active(aux: float) -> int:
        found = train(Faint(k=2, aux=aux), signed.rows, steps=300)
        return int((found.encode(signed.rows)[:, 0] != 0).sum())

    assert active(aux=0.0) == 0
    assert active(aux=1 / 32) > 30
