"""Finding a concept: from labelled images or two sets of them, a latent, or a direction."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.control.concepts.concept import ROWS, Concept, ConceptLatent, Source, rows_of
from salve_plugin.control.concepts.evidence import ConceptEvidence, over_images
from salve_plugin.control.concepts.probing import Features, Probing, left_out
from salve_plugin.control.concepts.recordings import (
    check_one_site,
    checked_recordings,
    with_flags,
)
from salve_plugin.control.concepts.sparse_probe import (
    SCREENED,
    forward_selection,
    stable_selection,
)
from salve_plugin.control.concepts.split import Split, group_indices
from salve_plugin.control.erasers import JointMoments
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.integers import whole
from salve_plugin.network import OnBaseMismatch


def find_concept(
    acts: Activations,
    has: Sequence[bool] | Tensor | None = None,
    *,
    without: Activations | None = None,
    groups: Sequence[int] | Tensor | None = None,
    dictionary: Dictionary | None = None,
    n_latents: int = 16,
    name: str = "concept",
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Concept:
    """Return the concept that tells some recorded images from others.

    Without a dictionary its values are the labels themselves. With one, they are the score of a
    sparse probe: the few latents that tell the images apart are chosen by stability selection, and
    how strongly they are active together is the value of each row; that says *what* is removed.
    Either way a probe is judged on images that it was not fitted on, and beside it what the same
    procedure reaches with permuted labels.

    Args:
        acts: recorded images, of any site.
        has: for each image whether it has the concept; None if all have it and `without` is given.
        without: the images that do not have it, recorded at the same site. If they are as many,
            in the same order, as those with it, image i of both is taken for a pair.
        groups: of each image (over both recordings), such as the photograph that it is a crop of:
            images of one group are never on both sides of a held-out judgement.
        dictionary: of the site, for a sparse probe.
        n_latents: how many latents the probe may use.
        name: of the concept, for sentences.
        seed: of permutations and bootstrap.
        on_base_mismatch: "warn" takes recordings and a dictionary of different networks too.

    Raises:
        InputError: if fewer than four images have the concept or lack it, lengths differ, the sites
            differ, `n_latents` is not positive, or no latent's code varies with the concept.
        BaseMismatchError: if recordings and dictionary are not of one network.
        ReadError: if a shard is missing or damaged.
    """
    recordings, flags = checked_recordings(acts, has, without, on_base_mismatch, dictionary)
    n_latents = whole(n_latents, "n_latents", least=1)
    grouped = group_indices(groups, len(flags), paired=without is not None)
    split = Split.of(flags, grouped, seed)
    x_probe = Probing(recordings, split, lambda x: x)
    if dictionary is None:
        blocks = x_probe.blocks()
        scores = x_probe.scores([_ridge_probe(rest) for rest in left_out(blocks)])
        return _concept(
            name, "labels", recordings, x_probe.row_values(flags.double()[:, None])[:, 0], flags,
            _ridge_probe(JointMoments.merged(blocks))[:, 0], split.evidence(scores), grouped,
        )  # fmt: skip
    encode = _encoder(dictionary)
    screened = _screened(recordings, dictionary)
    probe = Probing(recordings, split, lambda x: encode(x)[:, screened])
    blocks = probe.blocks()
    scores = probe.scores([_sparse_probes(rest, n_latents) for rest in left_out(blocks)])
    # Column 0 is the real labelling; the permuted ones have served as the null.
    latents, weights, stability = stable_selection(
        [block.columns(slice(0, 1)) for block in blocks], n_latents
    )
    read = torch.zeros(len(screened), 1, dtype=torch.float64)
    read[latents, 0] = weights
    values = torch.cat([rows @ read for rows, _ in probe.rows()])[:, 0]
    spreads = JointMoments.merged(blocks).xx.diagonal().clamp(min=0).sqrt()[latents]
    named = _named(probe, latents, screened, weights.abs() * spreads, stability)
    # Codes are not linear in activations: the read-out is the linear function of these that
    # predicts the score best.
    direction = JointMoments.of(
        (batch.x, part[:, None]) for batch, part in rows_of(recordings, values)
    )
    return _concept(
        name, "sparse probe", recordings, values, flags, _ridge_probe(direction)[:, 0],
        split.evidence(scores), grouped, named, dictionary,
    )  # fmt: skip


def latent_concept(
    dictionary: Dictionary,
    acts: Activations,
    latent: int,
    has: Sequence[bool] | Tensor | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Concept:
    """Return the concept that one latent's code is.

    Args:
        dictionary: of the recording's site.
        acts: where its codes are read.
        latent: which.
        has: for each image whether it has what the latent is believed to mean: then the evidence
            says how far that is true.
        name: in sentences; "latent 12" by default.
        seed: of the bootstrap.
        on_base_mismatch: as for `find_concept`.

    Raises:
        InputError: if there is no such latent, or `has` does not fit.
        BaseMismatchError: as for `find_concept`.
    """
    check_dictionary(dictionary)
    check_one_site((acts,), dictionary, on_base_mismatch)
    index = whole(latent, "latent")
    if not 0 <= index < dictionary.n_latents:
        raise InputError(f"latent {latent} is not from 0 to {dictionary.n_latents - 1}")
    encode = _encoder(dictionary)
    values = torch.cat([encode(batch.x)[:, index] for batch in acts.batches(ROWS)])
    images = torch.cat([batch.images for batch in acts.batches(ROWS)])
    strongest = int(over_images(values, images, acts.n_images).argmax())
    moments = JointMoments.of((batch.x, part[:, None]) for batch, part in rows_of((acts,), values))
    flags, evidence = _given((acts,), values, has, seed)
    return _concept(
        name or f"latent {index}", "latent", (acts,), values, flags, _ridge_probe(moments)[:, 0],
        evidence, None, (ConceptLatent(index, 1.0, 1.0, strongest),), dictionary,
    )  # fmt: skip


def direction_concept(
    acts: Activations,
    direction: Float[Tensor, " width"],
    has: Sequence[bool] | Tensor | None = None,
    *,
    name: str = "direction",
    seed: int = 0,
) -> Concept:
    """Return the concept that the projection on a direction is.

    Args:
        acts: where it is read.
        direction: (width,), of any length: a steering vector, a probe, a difference of means.
        has: as for `latent_concept`.
        name: in sentences.
        seed: of the bootstrap.

    Raises:
        InputError: if the direction has another width, is zero or not finite, or `has` does not
            fit.
    """
    check_one_site((acts,))
    usable = isinstance(direction, Tensor) and direction.shape == (acts.width,)
    if not usable or not bool(direction.isfinite().all()) or not bool(direction.any()):
        raise InputError(
            f"direction {tuple(getattr(direction, 'shape', ()))} is to be a finite tensor of "
            f"({acts.width},) that is not zero, as wide as site '{acts.site.name}'"
        )
    # On the CPU first: not every device has float64. A copy, since a concept is a value.
    read = direction.detach().cpu().to(torch.float64, copy=True)
    values = torch.cat([batch.x.double() @ read for batch in acts.batches(ROWS)])
    flags, evidence = _given((acts,), values, has, seed)
    return _concept(name, "direction", (acts,), values, flags, read, evidence)


def _ridge_probe(moments: JointMoments) -> Float64[Tensor, "features columns"]:
    """Return the least-squares probe of each column, with a shrunk covariance."""
    # The pseudo-inverse: a latent that never fires has no variance to divide by, and gets no
    # weight.
    inverse: Tensor = torch.linalg.pinv(moments.covariance(None), hermitian=True)
    return inverse @ moments.xz


def _sparse_probes(moments: JointMoments, count: int) -> Float64[Tensor, "features columns"]:
    probes = torch.zeros_like(moments.xz)
    for column in range(moments.xz.shape[1]):
        latents, weights = forward_selection(moments, count, column)
        probes[latents, column] = weights
    return probes


def _screened(recordings: tuple[Activations, ...], dictionary: Dictionary) -> Tensor:
    """Return the latents whose codes vary most, ascending: all of them in most dictionaries.

    Labels play no part, or held-out images would have been seen.
    """
    if dictionary.n_latents <= SCREENED:
        return torch.arange(dictionary.n_latents)
    encode = _encoder(dictionary)
    parts = (encode(batch.x) for acts in recordings for batch in acts.batches(ROWS))
    count, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for codes in parts:
        count += len(codes)
        sums, squares = sums + codes.sum(0), squares + codes.square().sum(0)
    # The difference of two sums loses digits where a mean is far above its spread, as codes' means
    # hardly are; and only the order counts.
    variance = squares / count - (sums / count).square()
    return variance.argsort(descending=True, stable=True)[:SCREENED].sort().values


def _named(
    probe: Probing, latents: Tensor, screened: Tensor, sizes: Tensor, stability: Tensor
) -> tuple[ConceptLatent, ...]:
    """Return the probe's latents by share, each with the image in which it is strongest."""
    codes = torch.cat([rows[:, latents] for rows, _ in probe.rows()])
    images = torch.cat([of_rows for _, of_rows in probe.rows()])
    count = len(probe.split.block)
    strongest = [int(over_images(column, images, count).argmax()) for column in codes.T]
    # Of spread and weight: a large weight of a code that hardly varies says little.
    shares = sizes / sizes.sum()
    return tuple(
        ConceptLatent(
            int(screened[latents[i]]), float(shares[i]), float(stability[i]), strongest[i]
        )
        for i in shares.argsort(descending=True, stable=True).tolist()
    )


def _concept(
    name: str, source: Source, recordings: tuple[Activations, ...], values: Tensor,
    has: Tensor | None, read: Tensor, evidence: ConceptEvidence | None,
    groups: Tensor | None = None,
    latents: tuple[ConceptLatent, ...] = (), dictionary: Dictionary | None = None,
) -> Concept:  # fmt: skip
    of_images = (
        torch.arange(sum(acts.n_images for acts in recordings)) if groups is None else groups
    )
    return Concept(
        name,
        source,
        recordings,
        values.double(),
        has,
        read,
        of_images,
        latents,
        dictionary,
        evidence,
    )


def _encoder(dictionary: Dictionary) -> Features:
    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        device = dictionary.atoms.device
        return dictionary.encode(x.to(device, dictionary.atoms.dtype)).cpu().double()

    return encode


def _given(
    recordings: tuple[Activations, ...], values: Tensor, has: object, seed: int
) -> tuple[Tensor | None, ConceptEvidence | None]:
    """Return labels and evidence for a score that needed no fitting."""
    if has is None:
        return None, None
    (acts,) = recordings
    _, flags = with_flags(acts, has, None)
    split = Split.of(flags, torch.arange(len(flags)), seed)
    images = torch.cat([batch.images for batch in acts.batches(ROWS)])
    scores = over_images(values, images, acts.n_images)[:, None]
    # The same score against permuted labels: nothing was fitted, so that nothing is fitted anew.
    return flags, split.evidence(scores.expand(-1, split.labels.shape[1]))
