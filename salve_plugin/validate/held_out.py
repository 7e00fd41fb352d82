"""The rows of a recording on which dictionaries are measured, and some to fit on."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.rows import READ_ROWS, Moments, RowReader, held_out
from salve_plugin.errors import InputError
from salve_plugin.validate.dark_matter import ROWS_PER_FEATURE
from salve_plugin.validate.reconstruction import check_finite

MAX_ROWS = 65_536
"""More held-out rows than this are thinned out, by whole images, evenly."""

MAX_CODES = 2**26
"""So many codes, one of each latent for each image, are in memory for each of a few passes."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows that no dictionary was trained on, of at least one image.

    Attributes:
        x: activations (rows, width).
        images: which of the images below each row is of (rows,), from 0.
        labels: class of each image (images,).
        chosen: index of each image in the recording (images,).
        n_held_out: number of held-out images of the recording, of which these are all or some.
        mean: of the training rows (width,).
        scale: root of the training rows' mean squared distance from their mean.
        fit_x: training rows in random order, up to 20 for each feature, or 4096 (fit, width).
    """

    x: Float[Tensor, "rows width"]
    images: Int[Tensor, " rows"]
    labels: Int[Tensor, " images"]
    chosen: Int[Tensor, " images"]
    n_held_out: int
    mean: Float[Tensor, " width"]
    scale: float
    fit_x: Float[Tensor, "fit width"]

    @classmethod
    def of(
        cls,
        acts: Activations,
        *,
        n_latents: int = 1,
        seed: int = 0,
        max_rows: int = MAX_ROWS,
        max_codes: int = MAX_CODES,
    ) -> "HeldOut":
        """Read them.

        Args:
            acts: the recording.
            n_latents: of the largest dictionary that is measured.
            seed: of the order of `fit_x`.
            max_rows: see `MAX_ROWS`.
            max_codes: see `MAX_CODES`.

        Raises:
            InputError: if no image is held out, a row is NaN or infinite, or the training rows are
                too few or constant.
            ReadError: if a shard is missing or damaged.
        """
        data = RowReader(acts, None)
        moments = Moments.of(data)
        held_out_images = held_out(torch.arange(acts.n_images)).nonzero().flatten()
        if not len(held_out_images):
            raise InputError(
                f"none of the recording's {acts.n_images} images is held out from training (one in "
                "ten is), so there is nothing to measure on; record more images"
            )
        most_images = min(max_rows * acts.n_images / acts.n_rows, max_codes / n_latents)
        # By whole images, lest an image's strongest position be among those left out.
        stride = max(1, math.ceil(len(held_out_images) / max(1, most_images)))
        chosen = held_out_images[::stride]
        # Of each image among the chosen; -1 for all others.
        position = torch.full((acts.n_images,), -1)
        position[chosen] = torch.arange(len(chosen))
        batches = list(acts.batches(READ_ROWS, keep=lambda images: position[images] >= 0))
        x = torch.cat([batch.x for batch in batches])
        check_finite(x, f"held-out activations of '{acts.site.name}'")
        images = position[torch.cat([batch.images for batch in batches])]
        labels = torch.zeros(len(chosen), dtype=torch.int64)
        if acts.labelling == "class":  # else all are of one class: none is told from another
            labels[images] = torch.cat([batch.labels for batch in batches])
        size = max(READ_ROWS, ROWS_PER_FEATURE * acts.width)
        fit_x = next(data.training(size, shuffle_seed=seed))
        return cls(
            x, images, labels, chosen, len(held_out_images), moments.mean, moments.scale, fit_x
        )

    @property
    def n_images(self) -> int:
        """Number of images measured on."""
        return len(self.chosen)
