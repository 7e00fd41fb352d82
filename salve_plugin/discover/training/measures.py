"""How well a finished dictionary reconstructs what it was learned from, in one pass."""

import warnings
from collections.abc import Mapping

import torch

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import L0_TOLERANCE
from salve_plugin.discover.training.rows import RowReader, Spread, held_out

OFF_TARGET = 0.25
"""Relative distance of L0 from its target from which on the target was missed."""

MANY_DEAD = 0.2
"""Share of dead latents from which on a dictionary is much smaller than its size says."""

OVERFIT, FEWEST = 0.1, 10
"""By how much held-out R² may stay below that of training, and from how many held-out rows on: R²
of fewer says little."""


@torch.no_grad()
def quality_of(dictionary: Dictionary, data: RowReader, scale: float) -> dict[str, object]:
    """Return R² on training and held-out rows, held-out L0, and the share of dead latents."""
    rows_of = {"train": Spread(dictionary.width), "held_out": Spread(dictionary.width)}
    errors = dict.fromkeys(rows_of, 0.0)
    alive = torch.zeros(dictionary.n_latents, dtype=torch.bool)
    active = 0
    for rows, images in data.all():
        code = dictionary.encode(rows)
        # In float64, as `Spread` sums the rows: R² compares two sums over the whole recording.
        error = (rows - dictionary.decode(code)).double().square().sum(1)
        # Codes of raw rows are `scale` times those of scaled rows, which the tolerance is meant
        # for.
        on, apart = code.abs() > L0_TOLERANCE * scale, held_out(images)
        for part, chosen in (("train", ~apart), ("held_out", apart)):
            rows_of[part].add(rows[chosen])
            errors[part] += float(error[chosen].sum())
        alive |= on[~apart].any(0)
        active += int(on[apart].sum())
    n_held_out = rows_of["held_out"].n_rows
    r2 = {
        f"{part}_r2": 1 - errors[part] / rows.total() if rows.total() else None
        for part, rows in rows_of.items()
    }
    return {
        **r2,
        "held_out_rows": n_held_out,
        "l0": active / n_held_out if n_held_out else None,
        "l0_tolerance": L0_TOLERANCE,
        "dead_share": 1 - float(alive.double().mean()),
    }


def warn_of(quality: Mapping[str, object], target_l0: float | int | None) -> None:
    """Warn of what `fit`'s caller would not expect of the dictionary that it returns.

    Warns:
        UserWarning: if a fifth of it is dead, it reconstructs worse than the mean row would or
            held-out rows much worse than those it learned from, or it missed the target L0.
    """
    r2, dead = quality["train_r2"], quality["dead_share"]
    l0, n_held_out = quality["l0"], quality["held_out_rows"]
    complaints = []
    if dead == 1:
        complaints.append(
            "no training row activates any latent: try a smaller penalty, another initialization, "
            "or more steps"
        )
    # The margin spares dictionaries whose codes are next to nothing: they reconstruct the mean, so
    # that their R² is zero up to rounding of either sign.
    elif isinstance(r2, float) and r2 < -1e-3:
        complaints.append(
            f"the dictionary reconstructs its training rows worse than their mean would (R² = "
            f"{r2:.3g}): try a smaller learning_rate, a smaller penalty, or more steps"
        )
    elif isinstance(dead, float) and dead >= MANY_DEAD:
        complaints.append(
            f"{dead:.0%} of the latents are dead, no training row activates them: choose fewer "
            "n_latents, more steps, or another learner"
        )
    lost = _lost(r2, quality["held_out_r2"])
    if lost > OVERFIT and isinstance(n_held_out, int) and n_held_out >= FEWEST:
        complaints.append(
            f"R² is {quality['train_r2']:.2f} on training rows and {lost:.2f} less on held-out "
            "rows, so the atoms fit the former alone: record more images, or choose fewer "
            "n_latents, fewer active latents, or fewer steps"
        )
    if target_l0 is not None and isinstance(l0, float) and abs(l0 / target_l0 - 1) > OFF_TARGET:
        complaints.append(
            f"{l0:.3g} latents of a row are active, not target_l0 = {target_l0:g}: train for more "
            "steps, or choose a target that the rows can have"
        )
    for complaint in complaints:
        warnings.warn(complaint, UserWarning, stacklevel=3)


def _lost(train_r2: object, held_out_r2: object) -> float:
    """Return by how much R² is lower on held-out rows; 0 where training rows are missed, too."""
    if not (isinstance(train_r2, float) and isinstance(held_out_r2, float)) or train_r2 <= 0:
        return 0.0
    return train_r2 - held_out_r2
