"""Integers as people have them: Python's, NumPy's and torch's."""

from contextlib import suppress
from operator import index

from salve_plugin.errors import InputError

LARGEST_SEED = 2**40


def whole(value: object, name: str, *, least: int | None = None) -> int:
    """Return a single integer, of Python, NumPy or torch.

    Raises:
        InputError: if it is something else: a truth value, a fraction, several integers; or below
            `least`.
    """
    kind = str(getattr(value, "dtype", type(value).__name__))
    number = None
    if "bool" not in kind and not getattr(value, "ndim", 0):
        with suppress(TypeError, RuntimeError):
            number = index(value)  # type: ignore[arg-type] # what is none raises
    if number is None:
        raise InputError(f"{name} is {value!r:.200}; expected an integer")
    if least is not None and number < least:
        raise InputError(f"{name} is {number}; at least {least} was expected")
    return number


def seed_number(value: object) -> int:
    """Return a seed that every generator of random numbers takes.

    Raises:
        InputError: if it is none.
    """
    seed = whole(value, "seed")
    # NumPy's take no negative one; multiples of this one by numbers of latents fit into 64 bits.
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed {seed} is not from 0 to {LARGEST_SEED}")
    return seed
