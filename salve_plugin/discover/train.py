"""Fit a dictionary to recorded activations: one loop for all learners."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin.discover.activations import Activations
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.discover.learners.base import Learner
from salve_plugin.discover.rows import Moments, Rows, Spread, held_out
from salve_plugin.errors import InputError
from salve_plugin.site import Site

L0_TOLERANCE = 0.01
"""A latent counts as active if |z| exceeds this share of the data's root mean squared distance
from their mean: its atom, of norm 1, then moves the reconstruction by that much."""

WARM_UP, DECAY = 0.05, 0.2
"""Shares of the steps in which the learning rate rises from and falls to zero."""


def fit(
    acts: Activations | Tensor,
    learner: str = "l1",
    *,
    n_latents: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    site: Site | None = None,
    **options: Any,
) -> Dictionary:
    """Learn a dictionary of atoms from activations; the same seed gives the same dictionary.

    The rows are divided by one scalar, the root of their mean squared distance from their mean,
    which is folded back at the end: the dictionary takes raw activations. Atoms start as randomly
    drawn rows, minus the mean, and stay at unit norm; the encoder starts as their transpose, the
    decoder's bias as the mean. Adam follows a rate with warm-up and decay. One image in ten, spread
    evenly over the recording, is held out; `meta` says how well those are reconstructed.

    Args:
        acts: a recording, or rows in memory (rows, width), each then counting as an image.
        learner: name of the learner.
        n_latents: number of latents; by default half the width (the paper's is below the width),
            at most half the training rows.
        seed: of the initial atoms and of the order of the rows.
        steps: optimizer steps; by default four passes over the data, but 400 to 10 000 steps.
        batch_size: rows in a step.
        learning_rate: its peak.
        site: what rows in memory are activations of; a recording knows.
        **options: the learner's hyper-parameters, e.g. `l1=0.03`.

    Returns:
        The frozen dictionary. Its `meta` holds the arguments and `scale`, `held_out_r2`,
        `train_r2`, `l0` (mean number of active latents of a held-out row, see `l0_tolerance`),
        `dead_share` (latents that no training row activates) and where the data came from.

    Raises:
        InputError: if the learner or an option does not exist, a number is out of range, or the
            activations are too few, constant, NaN or infinite.
        ReadError: if a shard is missing or damaged.
    """
    rule = create(learner, options)
    data = Rows(acts, site)
    for name, value in (("n_latents", n_latents), ("steps", steps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate must be a finite positive number, got {learning_rate}")
    moments = Moments.of(data)
    n_latents = n_latents or max(1, min(data.site.width // 2, moments.n_rows // 2))
    if n_latents > moments.n_rows:
        raise InputError(
            f"{moments.n_rows} training rows are too few for {n_latents} latents: record more "
            f"images, or choose n_latents of at most {moments.n_rows}"
        )
    steps = steps or min(max(400, math.ceil(4 * moments.n_rows / batch_size)), 10_000)
    with torch.inference_mode(False), torch.enable_grad():
        scaled = _initial(data, moments, rule, n_latents, seed)
        batches = (rows / moments.scale for rows in _endless(data, batch_size, seed))
        _train(
            scaled, rule, islice(batches, steps), lambda step: learning_rate * _share(step, steps)
        )
    dictionary = _folded(scaled, rule, moments.scale)
    dictionary.meta = {
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "initialization": "rows",
        "options": asdict(rule),  # type: ignore[call-overload] # every learner is a dataclass
        "scale": moments.scale,
        **_quality(dictionary, data, moments.scale),
        **data.origin,
    }
    return dictionary


def _initial(data: Rows, moments: Moments, rule: Learner, n_latents: int, seed: int) -> Dictionary:
    """Return the dictionary for scaled rows that training starts from."""
    rows = next(data.training(max(n_latents, 1024), shuffle_seed=seed)) - moments.mean
    rows = rows / moments.scale
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_latents, rows.shape[1], generator=random)
    # Equal rows would give equal atoms, which equal gradients never part.
    atoms = functional.normalize(rows[:n_latents] + 0.01 / math.sqrt(rows.shape[1]) * noise, dim=1)
    reconstruction = rows @ atoms.T @ atoms
    gain = (reconstruction * rows).sum() / reconstruction.square().sum()
    encoder, bias = gain * atoms, moments.mean / moments.scale
    tensors = {
        "atoms": atoms,
        "encoder_weight": encoder,
        "encoder_bias": -(encoder @ bias),
        "decoder_bias": bias,
    }
    return Dictionary(tensors, rule, data.site)


def _share(step: int, steps: int) -> float:
    """Return which share of the learning rate a step uses: warm-up, plateau, decay to zero."""
    rise = (step + 1) / max(1.0, WARM_UP * steps)
    fall = (steps - step) / max(1.0, DECAY * steps)
    return min(1.0, rise, fall)


def _train(
    dictionary: Dictionary,
    rule: Learner,
    batches: Iterator[Tensor],
    rate: Callable[[int], float],
) -> None:
    """Minimize the learner's loss over the batches, keeping the atoms at unit norm."""
    dictionary.requires_grad_(True)
    atoms, parameters = dictionary.atoms, list(dictionary.parameters())
    optimizer = torch.optim.Adam(parameters, fused=True)
    for step, rows in enumerate(batches):
        code = dictionary.encode(rows)
        loss = rule.loss(rows, code, dictionary.decode(code))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        for parameter in parameters:
            assert parameter.grad is not None
            # Fused Adam updates wrongly from transposed gradients.
            parameter.grad = parameter.grad.contiguous()
        with torch.no_grad():
            assert atoms.grad is not None
            atoms.grad -= (atoms.grad * atoms).sum(1, keepdim=True) * atoms
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.param_groups[0]["lr"] = rate(step)
            optimizer.step()
            atoms /= torch.linalg.vector_norm(atoms, dim=1, keepdim=True)
    dictionary.requires_grad_(False)


def _folded(scaled: Dictionary, rule: Learner, scale: float) -> Dictionary:
    """Return the dictionary for raw rows: with unit atoms kept, codes become `scale` times larger.

    E (x / s) + b becomes s times itself, E x + s b; likewise for the reconstruction.
    """
    tensors = {
        "atoms": scaled.atoms,
        "encoder_weight": scaled.encoder_weight,
        "encoder_bias": scaled.encoder_bias * scale,
        "decoder_bias": scaled.decoder_bias * scale,
    }
    return Dictionary(tensors, rule, scaled.site)


def _endless(data: Rows, size: int, seed: int) -> Iterator[Tensor]:
    """Yield shuffled training rows for ever, in another order each time."""
    for epoch in count():
        # Runs with neighbouring seeds must not share the order of an epoch.
        yield from data.training(size, shuffle_seed=seed * 1_000_003 + epoch)


@torch.no_grad()
def _quality(dictionary: Dictionary, data: Rows, scale: float) -> dict[str, object]:
    """Return R² on training and held-out rows, held-out L0, and the share of dead latents."""
    rows_of = {"train": Spread(dictionary.width), "held_out": Spread(dictionary.width)}
    errors = dict.fromkeys(rows_of, 0.0)
    alive = torch.zeros(dictionary.n_latents, dtype=torch.bool)
    active = 0
    for rows, images in data.all():
        code = dictionary.encode(rows)
        error = (rows - dictionary.decode(code)).double().square().sum(1)
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
