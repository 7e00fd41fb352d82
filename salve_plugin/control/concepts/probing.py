"""Probes on what is recorded: one fit for each block of images, judged on that block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.concepts.concept import ROWS
from salve_plugin.control.concepts.evidence import over_images
from salve_plugin.control.concepts.split import Split
from salve_plugin.control.erasers import JointMoments
from salve_plugin.discover.recording.activations import Activations

Features = Callable[[Tensor], Tensor]
"""From activations (rows, width) to what the probe sees of them (rows, features)."""


@dataclass(frozen=True, eq=False)
class Probing:
    """Features of recorded rows (activations or codes) by block of images."""

    recordings: tuple[Activations, ...]
    split: Split
    features: Features

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the features (rows, n) and the image of each row, over all recordings."""
        first = 0
        for acts in self.recordings:
            for batch in acts.batches(ROWS):
                yield self.features(batch.x).double(), batch.images + first
            first += acts.n_images

    def blocks(self) -> list[JointMoments]:
        """Return the moments of features and labels of each block."""
        split = self.split
        return JointMoments.of_blocks(
            ((rows, split.labels[images], split.block[images]) for rows, images in self.rows()),
            split.n_blocks,
        )

    def scores(self, probes: list[Tensor]) -> Float64[Tensor, "images columns"]:
        """Return the score of each image by the probe that was not fitted on it."""
        # All labellings at once: what the permuted ones cost is a few columns in one product.
        stacked = torch.stack(probes)  # (blocks, features, columns)
        scores, where = [], []
        for rows, images in self.rows():
            blocks = self.split.block[images]
            part = torch.empty(len(rows), stacked.shape[2], dtype=torch.float64)
            for block in torch.unique(blocks).tolist():
                mine = blocks == block
                part[mine] = rows[mine] @ stacked[block]
            scores.append(part)
            where.append(images)
        images, columns = torch.cat(where), torch.cat(scores)
        count = len(self.split.block)
        return torch.stack([over_images(c, images, count) for c in columns.T], 1)

    def row_values(self, of_image: Float64[Tensor, "images columns"]) -> Tensor:
        """Return for each row the value of its image."""
        return torch.cat([of_image[images] for _, images in self.rows()])


def left_out(blocks: list[JointMoments]) -> list[JointMoments]:
    """Return for each block the moments of all others."""
    # Merged, not subtracted from the whole: a difference of sums would lose digits where one block
    # holds most of the variance.
    return [
        JointMoments.merged([other for other in blocks if other is not block]) for block in blocks
    ]
