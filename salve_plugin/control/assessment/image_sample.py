"""A few images of a stream, drawn without knowing its length."""

import heapq
import random

import torch
from torch import Tensor

from salve_plugin.control.assessment.outcomes import MOST_RUN


class ImageSample:
    """Up to `MOST_RUN` random images of a stream: the same ones, whatever the size of its batches.

    Each image gets a random number, and the images of the largest are kept: every set of so many is
    as likely. Evenly spaced ones would fall in step with a loader that goes from class to class.
    Images of another shape than the first are passed over, as they do not fit into one batch.
    """

    def __init__(self, seed: int) -> None:
        """Begin without an image."""
        self._random = random.Random(seed)
        self._kept: list[tuple[float, int, Tensor]] = []
        self._seen = 0

    def add(self, images: Tensor) -> None:
        """Look at the next batch, (images, ...)."""
        for image in images:
            entry = (self._random.random(), self._seen, image)
            self._seen += 1
            full = len(self._kept) == MOST_RUN
            if self._kept and image.shape != self._kept[0][2].shape:
                continue
            if not full or entry > self._kept[0]:
                # A copy, so that the rest of its batch can go.
                entry = (*entry[:2], image.detach().cpu().clone())
                (heapq.heapreplace if full else heapq.heappush)(self._kept, entry)

    @property
    def images(self) -> Tensor:
        """What was kept, in the order of the stream."""
        return torch.stack([image for _, _, image in sorted(self._kept, key=lambda e: e[1])])
