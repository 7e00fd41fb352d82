"""Checks of hyper-parameters that several learners share.

Values are checked as they come: they may be from a file.
"""

import math

from salve_plugin.errors import InputError


def at_least(bound: float | int, **options: object) -> None:
    """Check that options are finite numbers of at least `bound`.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in options.items():
        if not (_number(value) >= bound):
            raise InputError(f"{name} must be a finite number of at least {bound:g}, got {value}")


def above(bound: float | int, **options: object) -> None:
    """Check that options are finite numbers above `bound`.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in options.items():
        if not (_number(value) > bound):
            raise InputError(f"{name} must be a finite number above {bound:g}, got {value}")


def between(low: float | int, high: float | int, **options: object) -> None:
    """Check that options lie between two bounds, both included.

    Raises:
        InputError: naming the first that does not.
    """
    for name, value in options.items():
        if not (low <= _number(value) <= high):
            raise InputError(f"{name} must lie between {low:g} and {high:g}, got {value}")


def at_least_one(**options: object) -> None:
    """Check that options are whole numbers of at least 1.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value}")


def flag(**options: object) -> None:
    """Check that options are true or false.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in options.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, got {value!r}")


def fits(k: int, n_latents: int) -> None:
    """Check that a row can have `k` active latents.

    Raises:
        InputError: if the dictionary has fewer latents.
    """
    if k > n_latents:
        raise InputError(
            f"k = {k} latents of each row cannot be active in a dictionary of {n_latents}; choose "
            f"k of at most {n_latents}, or more latents"
        )


def _number(value: object) -> float:
    """Return a finite number; NaN, which no comparison accepts, for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return math.nan
    return float(value)
