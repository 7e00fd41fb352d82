"""How the learning rate and the weight of the penalty move during training."""

import math
from dataclasses import dataclass

WARM_UP, DECAY = 0.05, 0.2
"""Shares of the steps in which the learning rate rises from and falls to zero."""

CONTROL_FROM = 0.1
"""Share of the steps after which L0 control starts: before it, codes have not settled."""

CONTROL_GAIN = 0.03
"""By how much the logarithm of the penalty's weight moves for each unit of log(L0 / target)."""

MEMORY = 0.9
"""Share of the running L0 that one step keeps."""


def rate_share(step: int, steps: int, decay_from: int) -> float:
    """Return which share of the learning rate a step uses: warm-up, plateau, decay to zero.

    Args:
        step: from 0.
        steps: how many there will be.
        decay_from: the step in which the decay begins.
    """
    # Neither the first nor the last step has the rate zero, with which it would be a step for
    # nothing.
    rise = (step + 1) / max(1.0, WARM_UP * steps)
    fall = (steps - step) / max(1.0, steps - decay_from)
    return min(1.0, rise, fall)


def decay_start(steps: int) -> int:
    """Return the step in which the decay of a whole run begins."""
    return steps - max(1, round(DECAY * steps))


@dataclass
class L0Control:
    """Moves the weight of a sparsity penalty so that L0 comes to a target.

    Too many active latents raise the weight, too few lower it, in proportion to the logarithm of
    their ratio (integral control: the weight rests only where L0 is the target).

    Attributes:
        target: active latents of a row to reach; None leaves the weight alone.
        weight: what the penalty is multiplied by.
        l0: running mean of L0; 0 before the first step.
    """

    target: float | int | None
    weight: float = 1.0
    l0: float = 0.0

    def observe(self, l0: float, progress: float) -> None:
        """Take the L0 of a step into account."""
        # Begun at the first value: a mean that rises from zero reports codes that are too sparse.
        self.l0 = l0 if self.l0 == 0 else MEMORY * self.l0 + (1 - MEMORY) * l0
        if self.target is None or progress < CONTROL_FROM:
            return
        # The floor is for steps in which no latent is active. Within ±3, one step changes the
        # weight by 9 % at most: a code that is all zero or still dense cannot throw it out of
        # reach.
        excess = math.log(max(self.l0, 1e-3) / self.target)
        self.weight *= math.exp(CONTROL_GAIN * min(3.0, max(-3.0, excess)))
