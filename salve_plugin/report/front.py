"""How much of the activations dictionaries explain with how many latents: R² against L0."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.sweep import Trial
from salve_plugin.errors import InputError
from salve_plugin.report.scripts import array
from salve_plugin.validate.held_out import HeldOut
from salve_plugin.validate.quality import Quality
from salve_plugin.validate.reconstruction import fvu

MOST_CODES = 2**21
"""Codes of the held-out images that are cut: one of each latent for each row."""
SIZES = 12
"""Numbers of latents that codes are cut to, each about twice the one before."""


def front(
    dictionary: Dictionary, acts: Activations, quality: Quality | None, trials: Sequence[Trial]
) -> Mapping[str, Any] | None:
    """Return the dictionary's own R² as its codes are cut, and single points beside it.

    Points are the dictionary and its controls, if they were measured, and the trials of a sweep.
    Whatever the trials' rows are, no point of them is said to be beaten by one of other rows.

    Args:
        dictionary: of the recording's site.
        acts: the recording.
        quality: of the dictionary.
        trials: other dictionaries of the site, from `salve.sweep`.

    Returns:
        None if no image is held out to measure on.
    """
    points = [] if quality is None else [
        {"name": name, "kind": "control" if at else "own", "r2": row.r2, "l0": row.l0}
        for at, (name, row) in enumerate(quality.rows.items())
    ]  # fmt: skip
    points += [
        {"name": _named(trial), "kind": "front" if trial.front else "trial",
         "r2": trial.r2, "l0": trial.l0}
        for trial in trials
    ]  # fmt: skip
    try:
        data = HeldOut.of(acts, n_latents=dictionary.n_latents, max_codes=MOST_CODES)
        kept, explained = cut(dictionary, data.x)
    except InputError:
        return None
    return {
        "points": points, "rows": len(data.x),
        "l0": array(torch.tensor(kept, dtype=torch.float32), "f32"),
        "r2": array(torch.tensor(explained, dtype=torch.float32), "f32"),
    }  # fmt: skip


@torch.no_grad()
def cut(dictionary: Dictionary, x: Float[Tensor, "rows width"]) -> tuple[list[float], list[float]]:
    """Return L0 and R² with only the n largest codes of each row left, for growing n.

    Args:
        dictionary: whose codes are cut; the last point is that of all of them.
        x: rows that it was not trained on.

    Raises:
        InputError: if the rows do not vary.
    """
    codes = dictionary.encode(x.to(dictionary.atoms.device))
    sizes = codes.abs()
    # What is exactly zero is no code: a row has as many as it needs.
    most = int((sizes > 0).sum(1).max())
    numbers = sorted({min(2**power, most) for power in range(SIZES)} | {most}) if most else [0]
    ranked = sizes.sort(1, descending=True).values
    kept, explained = [], []
    for number in numbers:
        # By size and not by place: equal codes stay or go together, and L0 is counted from what is
        # left.
        least = ranked[:, number - 1, None] if number else ranked[:, :1] + 1
        left = torch.where((sizes >= least) & (sizes > 0), codes, 0.0)
        kept.append(float((left != 0).sum(1).double().mean()))
        explained.append(1 - fvu(x, x - dictionary.decode(left).float().cpu()))
    return kept, explained


def _named(trial: Trial) -> str:
    return " ".join([trial.learner, *(f"{name}={each}" for name, each in trial.arguments.items())])
