"""What distinguishes one dictionary learner from another."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor


class Learner(ABC):
    """The activation function and the training loss of one kind of dictionary.

    A subclass is a frozen dataclass whose fields are its hyper-parameters, all of them plain JSON
    values and relative to data with a mean squared distance from their mean of 1.

    Attributes:
        name: what `fit` and saved dictionaries call it.
        source: the publication.
    """

    name: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def activate(self, pre: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows latents"]:
        """Return the code z of the affine pre-activations; differentiable."""

    @abstractmethod
    def loss(
        self,
        x: Float[Tensor, "rows width"],
        code: Float[Tensor, "rows latents"],
        reconstruction: Float[Tensor, "rows width"],
    ) -> Float[Tensor, ""]:
        """Return the training loss of scaled rows, averaged over rows."""
