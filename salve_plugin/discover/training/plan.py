"""What a run of the training loop is to do, in numbers: it needs no data to be tried out."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes:
        steps: optimizer steps.
        seed: of what the learner draws.
        epoch: training rows in one pass over the data.
        batch_size: rows of a step.
        target_l0: active latents of a row that the weight of the penalty is steered to.
        autocast: compute dense products in bfloat16.
    """

    steps: int
    seed: int
    epoch: int
    batch_size: int
    target_l0: float | int | None = None
    autocast: bool = False

    @property
    def patience(self) -> int:
        """Rows without activity after which a latent is dead: an epoch, at least 20 steps."""
        return max(self.epoch, 20 * self.batch_size)

    @property
    def revive_every(self) -> int:
        """Steps between two revivals."""
        return max(math.ceil(self.patience / self.batch_size), self.steps // 10)
