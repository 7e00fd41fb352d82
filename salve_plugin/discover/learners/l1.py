"""The paper's dictionary: a linear autoencoder with an l1 penalty on its codes."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.learners.base import Learner, Outcome, Step, Tensors
from salve_plugin.discover.learners.checks import at_least
from salve_plugin.discover.learners.registry import register


@register
@dataclass(frozen=True)
class L1(Learner):
    """z = E x + b_e without activation function; loss ‖X − X̂‖²_F + l1 · ‖Z‖₁, per row.

    Codes are signed and dense: an l1 penalty on a linear code makes most values small, none zero.
    Atoms of unit norm keep it honest, else small codes with large atoms would evade it.

    The paper's autoencoder reads activations as they are, and so does the finished dictionary: E x
    is learned from centred rows, and the biases take the mean in, exactly. Learned from the rows
    themselves, E would follow their mean, and E x move by as much more in each step as that is
    larger than what varies.

    As many atoms as the rows have axes of variance would do for a linear code: further ones become
    twins of these, for the loss is the same whether one latent or two share what they code. At a
    classifier's input, about as many latents as classes, started from k-means, have no twins.

    Attributes:
        l1: weight of the penalty. On data with mean squared distance 1 from their mean, 0.1 costs
            about 0.04 of R² on late-layer features and leaves each class its own latent.
    """

    name: ClassVar[str] = "l1"
    summary: ClassVar[str] = "linear code with an l1 penalty: signed, dense, exactly foldable"
    source: ClassVar[str] = "SALVE: sparse autoencoder-latent vector editing, linear l1 autoencoder"
    expansion: ClassVar[float] = 0.5
    learning_rate: ClassVar[float | None] = 5e-3  # a lower loss is not what an edit needs
    affine: ClassVar[bool] = True
    l1: float = 0.1

    def __post_init__(self) -> None:
        """Check the weight.

        Raises:
            InputError: if it is negative or not finite.
        """
        at_least(0, l1=self.l1)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the pre-activations themselves."""
        return pre

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Return the pre-activations themselves."""
        return pre

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of ‖x − x̂‖² + l1 · ‖z‖₁."""
        code = self.encode(t, step.x)
        error = (step.x - self.decode(t, code)).square().sum(-1)
        penalty = self.l1 * step.weight * code.abs().sum(-1)
        return Outcome((error + penalty).mean(), (code != 0).sum(0))
