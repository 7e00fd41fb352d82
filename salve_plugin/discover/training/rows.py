"""The rows that a dictionary learns from: on disk or in memory, one image in ten held out."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind
from salve_plugin.site import Site

READ_ROWS = 4096
"""Rows at a time in passes where the batch size does not matter."""


def held_out(images: Int[Tensor, " rows"], share: float = 0.1) -> Bool[Tensor, " rows"]:
    """Say which images are kept apart: one in ten from training, and always the same ones.

    Multiples of the golden ratio spread them evenly over the recording, whatever the order of its
    classes is: taking the last tenth would drop whole classes from a sorted data set, and every
    tenth image would hold out a single class of an interleaved one.

    >>> held_out(torch.arange(40)).nonzero().flatten().tolist()
    [8, 21, 29]

    Args:
        images: numbers of images in their recording.
        share: of the images that is kept apart.
    """
    # In float64: at 10⁵ images the products in float32 lie 0.004 apart, too coarse for their
    # fractions to be spread evenly.
    return (images.double() * ((math.sqrt(5) - 1) / 2)) % 1 >= 1 - share


class RowReader:
    """Activations to learn from.

    Attributes:
        site: what they are activations of.
        origin: where they come from, as plain JSON values.
    """

    def __init__(self, acts: Activations | Tensor, site: Site | None) -> None:
        """Take a recording, or rows in memory (rows, width), each of an image of its own.

        Raises:
            InputError: if the rows are not a dense matrix of real numbers, or do not fit `site`.
        """
        if site is not None:
            of_kind(site, Site, "site", "a Site, such as hooked.site(name)")
        self._acts = acts if isinstance(acts, Activations) else _matrix(acts)
        if isinstance(acts, Activations):
            self.site = acts.site
            self.origin: dict[str, object] = {
                "model": dict(acts.description),
                "model_sha256": acts.model_sha256,
                "network_sha256": acts.network_sha256,
                "labels_sha256": acts.labels_sha256,
                "n_images": acts.n_images,
                "n_rows": acts.n_rows,
            }
            if site is not None and site != acts.site:
                raise InputError(
                    f"the recording is of site '{acts.site.name}', not of '{site.name}'; leave out "
                    "`site`"
                )
            return
        self.site = site or Site("rows", "", "out", "pooled", acts.shape[1])
        self.origin = {"n_rows": len(acts)}
        if self.site.width != acts.shape[1]:
            raise InputError(
                f"rows of width {acts.shape[1]} do not fit site '{self.site.name}', which has "
                f"{self.site.width} features"
            )

    def all(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every row (rows, width) with its image (rows,), in order."""
        if isinstance(self._acts, Activations):
            for batch in self._acts.batches(READ_ROWS):
                yield batch.x, batch.images
            return
        for start in range(0, len(self._acts), READ_ROWS):
            rows = self._acts[start : start + READ_ROWS]
            yield rows, torch.arange(start, start + len(rows))

    def apart(self, most: int) -> Float[Tensor, "rows width"]:
        """Return the first held-out rows, at most so many."""
        kept: list[Tensor] = []
        for rows, images in self.all():
            kept.append(rows[held_out(images)])
            if sum(map(len, kept)) >= most:
                break
        return torch.cat(kept)[:most]

    def training(self, size: int, shuffle_seed: int | None = None) -> Iterator[Tensor]:
        """Yield the rows that are not held out, `size` at a time."""
        if isinstance(self._acts, Activations):
            kept = self._acts.batches(
                size, shuffle_seed=shuffle_seed, keep=lambda images: ~held_out(images)
            )
            yield from (batch.x for batch in kept)
            return
        images = torch.arange(len(self._acts))
        images = images[~held_out(images)]
        if shuffle_seed is not None:
            random = torch.Generator().manual_seed(shuffle_seed)
            images = images[torch.randperm(len(images), generator=random)]
        for start in range(0, len(images), size):
            # A copy, also of neighbouring rows: what `Moments.scaled` does in place must not reach
            # the caller's tensor.
            yield self._acts.index_select(0, images[start : start + size])


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the training rows before training.

    Attributes:
        mean: of each feature (width,).
        scale: root of the mean squared distance from the mean.
        n_rows: number of training rows.
    """

    mean: Float[Tensor, " width"]
    scale: float
    n_rows: int

    def scaled(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Return what learners see: rows minus the mean, divided by the scale; in their memory."""
        return rows.sub_(self.mean).div_(self.scale)

    @classmethod
    def of(cls, data: RowReader) -> "Moments":
        """Read the rows once; only the training rows count.

        Raises:
            InputError: if those are fewer than two or constant, or any row is NaN or infinite.
        """
        sums = Spread(data.site.width)
        seen = 0
        for rows, images in data.all():  # held-out rows are checked too, before all the work
            bad = (~rows.isfinite()).any(1)
            if bad.any():
                raise InputError(
                    f"activations of '{data.site.name}' hold NaN or infinite values: row "
                    f"{seen + int(bad.nonzero()[0])} is the first of {int(bad.sum())} near it; "
                    "record again or remove those rows"
                )
            seen += len(rows)
            sums.add(rows[~held_out(images)])
        if sums.n_rows < 2:
            raise InputError(
                f"{sums.n_rows} training rows are too few to learn from; record more images"
            )
        spread = sums.total()
        # Exactly 0, which `total` returns for what is rounding alone.
        if spread == 0:
            raise InputError(
                f"activations of '{data.site.name}' are constant: all {sums.n_rows} training rows "
                "are equal, there is nothing to learn; check the images and the site"
            )
        return cls(sums.mean().float(), math.sqrt(spread / sums.n_rows), sums.n_rows)


class Spread:
    """Sum over rows of the squared distance from their mean, in one pass, in float64.

    Distances are taken from the first row, so that a mean far from zero costs no digits.

    Attributes:
        n_rows: rows added so far.
    """

    def __init__(self, width: int) -> None:
        """Start without rows."""
        self.n_rows = 0
        self._origin = torch.zeros(width, dtype=torch.float64)
        self._first = torch.zeros(width, dtype=torch.float64)
        self._second = 0.0

    def add(self, rows: Float[Tensor, "rows width"]) -> None:
        """Take more rows into account."""
        values = rows.double()
        if self.n_rows == 0 and len(values):
            self._origin = values[0].clone()
        self.n_rows += len(values)
        values = values - self._origin
        self._first += values.sum(0)
        self._second += float(values.square().sum())

    def mean(self) -> Float[Tensor, " width"]:
        """Return the mean row (width,), in float64."""
        return self._origin + self._first / max(1, self.n_rows)

    def total(self) -> float:
        """Return Σ‖x − mean‖²; 0 if that is below what float64 resolves."""
        spread = self._second - float(self._first.square().sum()) / max(1, self.n_rows)
        return spread if spread > 1e-12 * self._second else 0.0


def _matrix(acts: Tensor) -> Tensor:
    """Return rows in memory as float32 on the CPU."""
    if not isinstance(acts, Tensor):
        raise InputError(
            f"activations must be a recording or a tensor (rows, width), got "
            f"{type(acts).__name__}; torch.as_tensor makes a tensor of an array"
        )
    if acts.ndim != 2 or acts.shape[1] == 0:
        raise InputError(f"rows must be (rows, width), got shape {tuple(acts.shape)}")
    if acts.is_complex() or acts.layout != torch.strided:
        raise InputError(
            f"rows must be a dense tensor of real numbers, got {acts.dtype} of layout {acts.layout}"
        )
    return acts.detach().cpu().float()
