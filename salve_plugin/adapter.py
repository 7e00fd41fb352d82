"""What a model family must offer, and how the installed families are found."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from torch import Tensor, nn

from salve_plugin.errors import UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image

    from salve_plugin.hooks import HookedModel

ENTRY_POINT_GROUP = "salve_plugin.adapters"


class Adapter(ABC):
    """Names the modules of one model family that SALVE reads and edits."""

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Say whether this adapter knows `model`'s family (not whether it can be edited)."""

    @abstractmethod
    def attach(self, model: nn.Module) -> "HookedModel":
        """Return the hooked model, verified on a probe batch; `model` itself is left untouched.

        Raises:
            UnsupportedModelError: if there is no classifier that can be read and edited.
        """

    @abstractmethod
    def create(
        self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        """Build a model of this family by name, in eval mode, for the command line.

        Without `checkpoint` the family's own pretrained weights are loaded.
        """

    @abstractmethod
    def transform(self, model: nn.Module) -> "Callable[[Image], Tensor]":
        """Return the preprocessing that `model` was trained with, from image to (C, H, W)."""


@cache
def installed_adapters() -> dict[str, Adapter]:
    """Return one instance of every installed adapter whose library is there, by name."""
    return {point.name: point.load()() for point in entry_points(group=ENTRY_POINT_GROUP)}


def attach(model: nn.Module) -> "HookedModel":
    """Return `model` with named sites; `model` itself is left untouched.

    Raises:
        UnsupportedModelError: if no installed adapter knows it, or it has no editable classifier.
    """
    for adapter in installed_adapters().values():
        if adapter.matches(model):
            return adapter.attach(model)
    raise UnsupportedModelError(
        f"no installed adapter knows {type(model).__name__}; installed: "
        f"{sorted(installed_adapters())}. Register one under '{ENTRY_POINT_GROUP}'"
    )
