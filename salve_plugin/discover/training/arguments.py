"""What `fit` is asked for: is it possible, and what follows from it."""

from dataclasses import replace

import torch

from salve_plugin.discover.learners.base import Learner, Solver
from salve_plugin.discover.learners.checks import above, flag, whole
from salve_plugin.errors import InputError

LARGEST_SEED = 2**40
"""Multiples of a seed seed the epochs and the steps: with this they still fit into 64 bits."""


def check(
    rule: Learner,
    *,
    seed: int,
    train_atoms: bool,
    learning_rate: float | None,
    **counts: int | None,
) -> None:
    """Check the arguments that do not depend on the data, and that torch computes in float32.

    Args:
        rule: the learner.
        seed: of the run.
        train_atoms: whether its atoms are to be trained.
        learning_rate: None if nobody gave one.
        **counts: whole numbers of at least 1, or None where nobody gave one.

    Raises:
        InputError: naming the first that is impossible.
    """
    if torch.get_default_dtype() != torch.float32:
        raise InputError(
            f"torch's default number type is {torch.get_default_dtype()}, and dictionaries are "
            "learned in float32; call torch.set_default_dtype(torch.float32) before fit"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > LARGEST_SEED:
        raise InputError(
            f"seed must be a whole number between -{LARGEST_SEED} and {LARGEST_SEED}, got {seed!r}"
        )
    whole(**{name: value for name, value in counts.items() if value is not None})
    above(0, learning_rate=1.0 if learning_rate is None else learning_rate)
    flag(train_atoms=train_atoms)
    if isinstance(rule, Solver) and not train_atoms:
        raise InputError(
            f"learner '{rule.name}' has nothing to learn but its atoms, so that they cannot be "
            "kept; leave out train_atoms=False"
        )


def steered(rule: Learner, target_l0: float | int | None) -> Learner:
    """Return the learner with k set to the target, where that is how it reaches one.

    Raises:
        InputError: if the target is no positive number, or the learner cannot be steered.
    """
    if target_l0 is None:
        return rule
    above(0, target_l0=target_l0)
    if rule.l0_control is None:
        raise InputError(
            f"learner '{rule.name}' has no sparsity that could be steered to target_l0 = "
            f"{target_l0}; leave it out, or choose another learner"
        )
    if rule.l0_control == "k":
        k = {"k": max(1, round(target_l0))}
        return replace(rule, **k)
    return rule


def check_target(target_l0: float | int | None, n_latents: int) -> None:
    """Raise InputError if more latents of a row are to be active than there are."""
    if target_l0 is not None and target_l0 > n_latents:
        raise InputError(
            f"target_l0 = {target_l0:g} latents of a row cannot be active in a dictionary of "
            f"{n_latents}; choose a target of at most {n_latents}, or more latents"
        )


def with_fitting_k(rule: Learner, n_latents: int) -> Learner:
    """Return the learner with a default of k that is too large for the dictionary lowered."""
    k = getattr(rule, "k", None)
    most = max(1, n_latents // 8)
    if not isinstance(k, int) or k <= most:
        return rule
    return replace(rule, **{"k": most})
