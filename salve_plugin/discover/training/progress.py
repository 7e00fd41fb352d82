"""What a running fit tells: to a callback, and beside its progress bar."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.learners.base import Learner, Tensors
from salve_plugin.discover.training.loop import Done, State


@dataclass(frozen=True)
class Progress:
    """How a fit stands; `vars(progress)` is a plain dictionary for any logger.

    Attributes:
        step: steps done.
        steps: steps there will be.
        loss: of the last batch.
        r2: on held-out rows; None if there are none.
        l0: active latents of a row in the last batch.
        dead_share: latents without activity for an epoch.
        learning_rate: of the last step.
    """

    step: int
    steps: int
    loss: float
    r2: float | None
    l0: float
    dead_share: float
    learning_rate: float


def held_out_r2(rule: Learner, t: Tensors, rows: Float[Tensor, "rows width"]) -> float | None:
    """Return R² of the learner in training on scaled rows; None if they do not vary."""
    if len(rows) < 2:
        return None
    with torch.no_grad():
        # Coded as a finished dictionary does: BatchTopK and its kin choose in another way in
        # training.
        finished = rule.finished(t)
        error = rows - rule.decode(finished, rule.encode(finished, rows))
    spread = (rows - rows.mean(0)).square().sum()
    return float(1 - error.square().sum() / spread) if spread > 0 else None


def progress_of(state: State, done: Done, r2: float | None, patience: int) -> Progress:
    """Return what there is to tell after a step."""
    return Progress(
        done.step,
        state.stop,
        float(done.loss),
        r2,
        done.l0,
        float((state.silent >= patience).double().mean()),
        float(state.optimizer.param_groups[0]["lr"]),
    )


def numbers_of(progress: Progress) -> str:
    """Return what stands beside the bar."""
    r2 = "-" if progress.r2 is None else f"{progress.r2:.3f}"
    return f"R² {r2}  L0 {progress.l0:.1f}  dead {progress.dead_share:.1%}"
