"""Real digits as a data set with class names that are not harmless, and what is made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

import salve_plugin as salve
from salve_plugin.demo import digits

NAMES = (
    "zero", "one</script><script>alert(1)</script>", "two", "three'; rm -rf \"$HOME\"", "four",
    "<script>alert(1)</script>", "six\u2028seven", "-7",
    "<img src=x onerror=alert(2)>", "nine & ten",
)  # fmt: skip
"""Names that do something where they are not taken for text."""


class Numbers(Dataset[tuple[Tensor, int]]):
    """Digits with class names of one's own, and files that are called as they like."""

    def __init__(self, split: digits.Split, classes: Sequence[str]) -> None:
        self.images, self.labels, self.classes = split.images, split.labels, list(classes)
        self.samples = [
            (f"/some/where/{number}<b>.png", int(label)) for number, label in enumerate(self.labels)
        ]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class Small:
    hooked: salve.HookedModel
    dictionary: salve.Dictionary
    acts: salve.Activations
    images: Numbers
