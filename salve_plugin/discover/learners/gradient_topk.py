"""g-SAE: TopK that prefers, in training, the latents on which the model's loss depends."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.sparse import Support
from salve_plugin.discover.learners.base import Architecture, Step, Tensors
from salve_plugin.discover.learners.checks import at_least
from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from salve_plugin.discover.dictionary import Dictionary


@register
@dataclass(frozen=True)
class GradientTopK(TopK):
    """Training keeps the k largest of relu(h) · (1 + beta · |g Vᵀ|); loss as TopK.

    To first order, removing latent l changes the model's loss by z_l ⟨v_l, g⟩, where g is the
    gradient of that loss with respect to the row. The score decides which latents are kept; their
    values are relu(h) as ever. The larger `beta`, the better the model works on reconstructions
    whose latents were chosen so, and the worse they reconstruct; with `beta` = 0 it is TopK.

    A dictionary's `encode` knows no gradient: it is TopK on h, row by row. Choosing so what was
    learned for another choice, the model works worse on its reconstructions, not better;
    `gradient_code` chooses as training did.

    Attributes:
        k: active latents of a row; fewer where fewer pre-activations are positive.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
        beta: weight of the gradient, in units of one over the model's loss.
    """

    name: ClassVar[str] = "gradient_topk"
    summary: ClassVar[str] = "TopK that keeps, in training, what the model's loss depends on"
    source: ClassVar[str] = "after Olmo et al. 2024, Features that make a difference (g-SAE)"
    saelens: ClassVar[Architecture | None] = "topk"
    by_size: ClassVar[bool] = False
    beta: float = 1.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        super().__post_init__()
        at_least(0, beta=self.beta)

    def select(self, pre: Float[Tensor, "rows latents"], t: Tensors, step: Step) -> Support:
        """Return the latents with the k largest scores of each row.

        Raises:
            InputError: if `beta` is not 0 and the batch comes without gradients.
        """
        if self.beta == 0:
            return super().select(pre, t, step)
        if step.gradient is None:
            raise InputError(
                f"learner '{self.name}' with beta = {self.beta:g} needs the gradient of the "
                "model's loss at each row: give fit(gradient=), for the head's input "
                "salve_plugin.head_gradient(hooked), or choose beta=0, which is TopK"
            )
        scores = gradient_scores(pre, step.gradient, t["atoms"], self.beta)
        return Support.of_indices(scores.topk(self.k, dim=1, sorted=False).indices, pre.shape[1])


def gradient_scores(
    pre: Float[Tensor, "rows latents"],
    gradient: Float[Tensor, "rows width"],
    atoms: Float[Tensor, "latents width"],
    beta: float,
) -> Float[Tensor, "rows latents"]:
    """Return relu(h) · (1 + beta · |g Vᵀ|).

    >>> atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> gradient_scores(torch.tensor([[3.0, 2.0]]), torch.tensor([[0.0, -1.0]]), atoms, 1.0)
    tensor([[3., 4.]])
    """
    return functional.relu(pre) * (1 + beta * (gradient @ atoms.T).abs())


def gradient_code(
    dictionary: "Dictionary",
    x: Float[Tensor, "rows width"],
    gradient: Float[Tensor, "rows width"],
) -> Float[Tensor, "rows latents"]:
    """Return the code of activations whose k latents are chosen as in training.

    Args:
        dictionary: that `fit` learned with `gradient_topk`.
        x: raw activations.
        gradient: of the model's loss at them, as given to `fit`.

    Raises:
        InputError: if the dictionary is of another learner, or its `meta` does not say at which
            scale it was trained.
    """
    options, scale = dictionary.options, dictionary.meta.get("scale")
    if dictionary.learner != GradientTopK.name or not isinstance(scale, float):
        raise InputError(
            f"a dictionary of learner '{dictionary.learner}' with scale {scale} in its meta has no "
            f"choice by gradient; give one that fit(acts, '{GradientTopK.name}') returned"
        )
    learner = GradientTopK(**options)  # type: ignore[arg-type] # they were a learner's
    pre = dictionary.pre_activation(x)
    # `beta` is in units of training: there, rows are smaller by `scale`, gradients larger.
    scores = gradient_scores(pre, gradient.to(pre), dictionary.atoms, learner.beta * scale)
    latents = scores.topk(learner.k, dim=1).indices
    return torch.zeros_like(pre).scatter(1, latents, functional.relu(pre.gather(1, latents)))
