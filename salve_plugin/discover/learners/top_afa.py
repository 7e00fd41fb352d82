"""top-AFA: each row keeps as many latents as give its code the row's own norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels.encoder import encode_at, pre_activations
from salve_plugin.discover.kernels.precision import largest
from salve_plugin.discover.kernels.sparse import Code, Support
from salve_plugin.discover.learners.auxiliary import apart, dead_loss
from salve_plugin.discover.learners.base import Learner, Outcome, Start, Step, Tensors
from salve_plugin.discover.learners.checks import at_least, at_least_one
from salve_plugin.discover.learners.registry import register


@register
@dataclass(frozen=True)
class TopAFA(Learner):
    """z keeps the K largest of relu(E (x − b_d)); K brings ‖z‖ as near to ‖x − b_d‖ as it can.

    There is no k to choose: if the active atoms of a row are almost orthogonal, ‖z‖ is almost the
    norm of what z V reconstructs (approximate feature activation). The more latents there are for
    the width, the less that holds, and the more rows keep; the term `afa` holds against it. The
    loss of a row is ‖x − x̂‖² + afa · (‖z‖ − ‖x − b_d‖)² + aux · AuxK. The encoder has no bias of
    its own: b_e = −E b_d.

    Attributes:
        afa: weight of the difference of norms.
        aux: weight of the auxiliary loss.
        k_aux: dead latents of a row that predict its error; None is all that learn in a step.
    """

    name: ClassVar[str] = "top_afa"
    summary: ClassVar[str] = "as many latents as give the code the row's norm: no k to choose"
    source: ClassVar[str] = (
        "Lee et al. 2025, Evaluating and designing SAEs by approximating quasi-orthogonality"
    )
    afa: float = 0.5
    aux: float = 1 / 32
    k_aux: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: if one is out of range.
        """
        at_least(0, afa=self.afa, aux=self.aux)
        at_least_one(k_aux=1 if self.k_aux is None else self.k_aux)

    def activate(
        self, t: Tensors, pre: Float[Tensor, "*rows latents"]
    ) -> Float[Tensor, "*rows latents"]:
        """Return the positive part: the code before the choice, which depends on the row's norm."""
        return functional.relu(pre)

    def encode(self, t: Tensors, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows latents"]:
        """Keep the K largest positive pre-activations of each row."""
        pre = self.pre_activation(t, x)
        centred = x - t["decoder_bias"]
        # How many are kept does not depend on the row's unit, but squares have half of float32's
        # range: those of raw rows could all be 0 or infinite.
        size = largest(centred)
        norm = torch.linalg.vector_norm(centred / size, dim=-1)
        return self.activate(t, pre) * chosen(pre / size, norm)

    def initial_code(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """Keep what a row of norm 1 would: the rows' mean squared norm."""
        return functional.relu(pre) * chosen(pre, pre.new_ones(len(pre)))

    def prepare(self, start: Start) -> Tensors:
        """Return the four tied tensors; the encoder's bias follows from the others."""
        tensors = start.tensors()
        tensors["encoder_bias"].requires_grad_(False)
        return tensors

    def loss(self, t: Tensors, step: Step) -> Outcome:
        """Return the mean over rows of the three terms."""
        # Not the tensor: E and b_d get gradients through it.
        t = {**t, "encoder_bias": -t["encoder_weight"] @ t["decoder_bias"]}
        t, dead = apart(t, step.dead, self.aux, step.random)
        weight, bias = t["encoder_weight"], t["encoder_bias"]
        centred = step.x - t["decoder_bias"]
        with torch.no_grad():
            norm = torch.linalg.vector_norm(centred, dim=1)
            pre = pre_activations(step.x, weight, bias, step.scratch)
            support = Support.of_mask(chosen(pre, norm))
        values = functional.relu(encode_at(step.x, weight, bias, support, pre))
        code = Code(values, support)
        error = centred - code.decode(t["atoms"])
        loss = error.square().sum(-1).mean()
        if self.afa:
            squares = torch.zeros_like(norm).index_add(0, support.rows, values.square().to(norm))
            length = squares.clamp(min=1e-12).sqrt()  # the root has no derivative at 0
            loss = loss + self.afa * (length - norm).square().mean()
        if dead is not None:
            loss = loss + self.aux * dead_loss(dead, step, error, self.k_aux)
        return Outcome(loss, code.counts())

    def constrain(self, t: Tensors) -> None:
        """Bring atoms to unit norm and b_e to −E b_d."""
        super().constrain(t)
        t["encoder_bias"].copy_(-t["encoder_weight"] @ t["decoder_bias"])


def chosen(
    pre: Float[Tensor, "*rows latents"], norm: Float[Tensor, "*rows"]
) -> Bool[Tensor, "*rows latents"]:
    """Say which latents each row keeps: the positive ones among its K largest.

    Args:
        pre: pre-activations.
        norm: of the centred rows.
    """
    # All are sorted: how many are kept is known only from the sums of the largest.
    ordered, latents = functional.relu(pre).sort(dim=-1, descending=True)
    rank = torch.arange(1, pre.shape[-1] + 1, device=pre.device)
    kept = (rank <= count_kept(ordered, norm)[..., None]) & (ordered > 0)
    return torch.zeros_like(kept).scatter(-1, latents, kept)


def count_kept(
    ordered: Float[Tensor, "*rows latents"], norm: Float[Tensor, "*rows"]
) -> Int[Tensor, "*rows"]:
    """Return K, the least q at which |√(h_1² + … + h_q²) − ‖x − b_d‖| is smallest; at least 1.

    >>> count_kept(torch.tensor([4.0, 3.0, 1.0]), torch.tensor(5.0)).item()
    2

    Args:
        ordered: rectified pre-activations, the largest first; atoms have unit norm.
        norm: of the centred rows.
    """
    length = ordered.square().cumsum(-1).sqrt()
    # Past the positive ones the length stands still; argmin takes the first of equal ones.
    return (length - norm[..., None]).abs().argmin(-1) + 1
