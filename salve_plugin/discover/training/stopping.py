"""When a run that stands still ends early."""

from salve_plugin.discover.training.loop import State
from salve_plugin.discover.training.schedule import CONTROL_FROM, DECAY

LEAST_GAIN = 1e-3
"""R² that must be gained between two best reports for a run not to count as standing still."""

NEAR_TARGET = 0.1
"""Relative distance of L0 from its target within which a run may count as standing still."""


def stop_if_still(state: State, r2: float | None, patience: int | None, every: int) -> None:
    """Begin the decay now if R² has not grown for `patience` reports.

    Args:
        state: of the run; moved in place.
        r2: of this report, on held-out rows; None if there are none.
        patience: None lets the run go on to its end.
        every: steps between two reports.
    """
    if r2 is None or not patience:
        return
    # Until it has settled, each report counts as the best, even a lower one: an R² from before the
    # penalty's rise, never reached again, must not end the run.
    if r2 > state.best[0] + LEAST_GAIN or not _settled(state):
        state.best = (r2, state.step)
    waited = (state.step - state.best[1]) // every
    if waited >= patience and state.step < state.decay_from:
        state.decay_from = state.step
        state.stop = state.step + max(1, round(DECAY * state.step))


def _settled(state: State) -> bool:
    """Say whether R² can be compared: a penalty that still rises lowers it, as it should."""
    control = state.control
    near = control.target is None or abs(control.l0 / control.target - 1) < NEAR_TARGET
    return near and state.step > CONTROL_FROM * state.stop
