"""Concepts that are one direction: control vectors of pairs, and RAPTOR's logistic probe."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from salve_plugin.control.concepts.concept import ROWS, Concept
from salve_plugin.control.concepts.evidence import ConceptEvidence, over_images
from salve_plugin.control.concepts.logistic import logistic
from salve_plugin.control.concepts.probing import Probing
from salve_plugin.control.concepts.recordings import checked_recordings
from salve_plugin.control.concepts.split import Split, group_indices
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.network import OnBaseMismatch

STRICTNESS = tuple(10 ** (power / 2) for power in range(-8, 5))
"""C of the logistic regression, 1e-4 to 1e2: RAPTOR's range, on a grid of half powers of ten."""


def control_vector(
    acts: Activations,
    without: Activations,
    *,
    groups: Sequence[int] | Tensor | None = None,
    name: str = "control vector",
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Concept:
    r"""Return the concept that is the main axis along which pairs of images differ.

    The first principal axis of the differences $x_i^+ - x_i^-$, about zero: where a concept shifts
    all pairs alike, that shift is it; about their mean, only what differs between shifts would be
    left. Its sign is a vote: positive where more pairs rise along it than fall. After
    representation engineering (Zou et al. 2023, arXiv 2310.01405).

    Evidence is held out: the axis and the vote that judge an image come from other images. In the
    null, pairs change sides at random, so that only the vote is at stake.

    Args:
        acts: images with the concept.
        without: the same images without it, in the same order.
        groups: of each image (over both recordings): never on both sides of a judgement.
        name: in sentences.
        seed: of permutations and bootstrap.
        on_base_mismatch: as for `find_concept`.

    Returns:
        The concept; `concept.read` is the axis, of unit length, (width,).

    Raises:
        InputError: if the recordings are no pairs, or the pairs do not differ.
        BaseMismatchError: as for `find_concept`.
    """
    recordings, flags = checked_recordings(acts, None, without, on_base_mismatch)
    if not (acts.labels_sha256 == without.labels_sha256 and acts.n_rows == without.n_rows):
        raise InputError(
            f"recordings of {acts.n_images} and {without.n_images} images are no pairs with equal "
            "labels: record the same images with and without the concept, in the same order"
        )
    grouped = group_indices(groups, len(flags), paired=True)
    split = Split.of(flags, grouped, seed)
    half = acts.n_images
    if not split.block[:half].equal(split.block[half:]):
        raise InputError("groups tear pairs apart: both images of a pair belong to one group")
    probe = Probing(recordings, split, lambda x: x)
    pairs = _Pairs(acts, without, split)
    scores = probe.scores([pairs.axes(block) for block in range(split.n_blocks)])
    direction = pairs.axes(None)[:, 0]
    return _concept(recordings, direction, flags, name, grouped, split.evidence(scores))


def raptor_direction(
    acts: Activations,
    has: Sequence[bool] | Tensor | None = None,
    *,
    without: Activations | None = None,
    groups: Sequence[int] | Tensor | None = None,
    name: str = "probe direction",
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Concept:
    r"""Return the concept that is the direction of a logistic probe.

    As RAPTOR does (arXiv 2602.00158): features are standardized, C of an L2-regularized logistic
    regression is chosen by its accuracy on validation images (of equals the smallest), the probe is
    fitted again with those included, and its weights are divided by the features' spreads, so that
    they read raw activations. Half of the images train, a quarter validates, and on the last
    quarter the evidence is measured; its null refits with permuted labels at the chosen C.

    All rows are held in memory, in float64.

    Args:
        acts: recorded images.
        has: for each image whether it has the concept; None if `without` is given.
        without: the images that do not have it.
        groups: as for `find_concept`.
        name: in sentences.
        seed: of the split, permutations and bootstrap.
        on_base_mismatch: as for `find_concept`.

    Returns:
        The concept; `concept.read` is the direction, of unit length, (width,).

    Raises:
        InputError: as for `find_concept`, or if activations do not vary.
        BaseMismatchError: as for `find_concept`.
    """
    recordings, flags = checked_recordings(acts, has, without, on_base_mismatch)
    grouped = group_indices(groups, len(flags), paired=without is not None)
    split = Split.of(flags, grouped, seed)
    # By remainder: with few images only the first blocks have images of both kinds.
    part = split.block % 4
    for images_of in (part == 0, part == 1, part > 1):
        if not bool(flags[images_of].any()) or bool(flags[images_of].all()):
            raise InputError(
                "the groups leave no images of both kinds to fit, to validate and to judge; at "
                "least four groups with and four without the concept are needed"
            )
    rows = [*Probing(recordings, split, lambda x: x).rows()]
    x, images = torch.cat([block for block, _ in rows]), torch.cat([own for _, own in rows])
    labels = split.labels > 0.5
    strictness = _chosen(x, labels[:, 0][images], part[images])
    kept = part[images] != 0  # what remains judges
    judged = part == 0
    # A labelling that puts all of one kind on one side has no probe, or nothing to judge it by.
    mixed = torch.ones(labels.shape[1], dtype=torch.bool)
    for side in (labels[judged], labels[~judged]):
        mixed &= side.any(0) & ~side.all(0)
    if int(mixed.sum()) < 2:
        raise InputError(
            f"{len(flags)} images are too few for a null: no other labelling of them has images of "
            "both kinds to fit and to judge; record more"
        )
    labels = labels[:, mixed]
    directions = torch.stack(
        [_probe(x[kept], column[images][kept], strictness)[0] for column in labels.T], 1
    )
    scores = torch.stack([over_images(c, images, len(flags)) for c in (x @ directions).T], 1)
    judging = replace(
        split, labels=labels[judged].double(), block=split.block[judged], group=split.group[judged]
    )
    evidence = judging.evidence(scores[judged])
    return _concept(recordings, directions[:, 0], flags, name, grouped, evidence)


class _Pairs:
    """Pairs of rows by block of images, of which axes are found on all blocks but one."""

    def __init__(self, acts: Activations, without: Activations, split: Split) -> None:
        self.acts, self.without, self.split = acts, without, split
        width = acts.width
        self.squares = torch.zeros(split.n_blocks, width, width, dtype=torch.float64)
        for differences, images in self._differences():
            blocks = split.block[images]
            for block in torch.unique(blocks).tolist():
                mine = differences[blocks == block]
                self.squares[block] += mine.T @ mine

    def axes(self, left_out: int | None) -> Float64[Tensor, "width columns"]:
        """Return the axis of the pairs outside a block, with the sign of each labelling's vote."""
        # Summed without the block, not less it: if it holds nearly all of the difference, what a
        # subtraction leaves is rounding.
        kept = [i for i in range(len(self.squares)) if i != left_out]
        square = self.squares[kept].sum(0)
        if not float(square.diagonal().sum()) > 0:
            raise InputError("the pairs do not differ at this site: there is no axis")
        # eigh sorts ascending: the last is the main axis.
        axis = torch.linalg.eigh(square)[1][:, -1]
        # An eigenvector has no sign of its own, and the solver's choice differs by machine.
        axis = axis * torch.sign(axis[axis.abs().argmax()])
        half = self.acts.n_images
        votes = torch.zeros(self.split.labels.shape[1], dtype=torch.float64)
        amounts = torch.zeros_like(votes)
        for differences, images in self._differences():
            counted = self.split.block[images] != (-1 if left_out is None else left_out)
            rises = differences[counted] @ axis
            own = images[counted]
            # +1 where a labelling calls the first image of the pair the marked one, else -1.
            sides = self.split.labels[own] - self.split.labels[own + half]
            votes += (rises.sign()[:, None] * sides).sum(0)
            amounts += (rises[:, None] * sides).sum(0)
        # A tied vote is decided by how far pairs move in sum. If that is zero too the axis keeps
        # its own sign: a sign of 0 would make all scores alike.
        signs = torch.where(votes != 0, votes.sign(), amounts.sign())
        axes: Tensor = axis[:, None] * torch.where(signs == 0, 1.0, signs)
        return axes

    def _differences(self) -> Iterator[tuple[Tensor, Tensor]]:
        pairs = zip(self.acts.batches(ROWS), self.without.batches(ROWS), strict=True)
        for with_, plain in pairs:
            yield with_.x.double() - plain.x.double(), with_.images


def _concept(
    recordings: tuple[Activations, ...], direction: Tensor, flags: Bool[Tensor, " images"],
    name: str, groups: Int64[Tensor, " images"], evidence: ConceptEvidence,
) -> Concept:  # fmt: skip
    values = torch.cat(
        [batch.x.double() @ direction for acts in recordings for batch in acts.batches(ROWS)]
    )
    return Concept(
        name, "direction", recordings, values, flags, direction, groups, evidence=evidence
    )


def _probe(
    x: Tensor, has: Tensor, strictness: float, start: Tensor | None = None
) -> tuple[Tensor, float, Tensor]:
    """Return the unit direction, its threshold, and the parameters to start the next fit from."""
    mean, spread = x.mean(0), x.std(0, correction=0)
    # A constant feature gets no weight, instead of an infinite one.
    inverse = torch.where(spread > 0, 1 / spread.clamp(min=1e-300), 0.0)
    parameters = logistic((x - mean) * inverse, has, strictness, start)
    weight = parameters[:-1] * inverse
    size = weight.norm()
    if not float(size) > 0:
        raise InputError("the activations do not vary with the concept: a probe has no direction")
    direction = weight / size
    # wᵀ((x - m) / s) + b > 0, said of the unit direction and raw activations.
    threshold = float(direction @ mean - parameters[-1] / size)
    return direction, threshold, parameters


def _chosen(x: Tensor, has: Tensor, part: Tensor) -> float:
    """Return the C whose probe is right most often on the validation rows."""
    train, validation = part > 1, part == 1
    best, chosen, start = -1.0, STRICTNESS[0], None
    # From the strongest pull on, each fit starting at the last optimum, which is near. Only a
    # better accuracy replaces a choice, so that of equals the smallest C stays.
    for strictness in STRICTNESS:
        direction, threshold, start = _probe(x[train], has[train], strictness, start)
        right = (x[validation] @ direction > threshold) == has[validation]
        if float(right.double().mean()) > best:
            best, chosen = float(right.double().mean()), strictness
    return chosen
