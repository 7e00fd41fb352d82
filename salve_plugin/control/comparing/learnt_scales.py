r"""How much of each of several edits: one scale an edit and layer, learnt on a few images.

After aTLAS (Zhang et al. 2024, arXiv 2407.02880): $\theta = \theta_0 + \sum_i \sum_b \lambda_{ib}
\tau_i^{(b)}$, with $\tau_i$ what edit i adds to the parameters, and a block b a layer, or some of
its rows. All scales are learnt together, so that edits that interfere give way to each other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from salve_plugin.control.comparing.multiples import at_multiple
from salve_plugin.control.comparing.parameter_changes import LayerChange, changes_of
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import edit_at
from salve_plugin.control.operators import Gate
from salve_plugin.control.operators.base import real
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.solving import check_labels, two_sided
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.discover.recording.loader import LabelledImages
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel, check_attached, evaluating
from salve_plugin.images import as_input, refused_in_words
from salve_plugin.integers import whole

STEPS = 200


@dataclass(frozen=True, eq=False)
class LearntScales:
    """Edits scaled so that together they do best on some images.

    Attributes:
        scales: of each edit, for each of its layers and row blocks, (layers, row blocks); 0 leaves
            an edit out, 1 is the edit as given.
        edits: the scaled ones, to be applied together: the edit itself at a multiple where one
            scale is all, else a low-rank update of each layer.
        loss: with the learnt scales; this and the other losses include the pull.
        loss_without: with none of the edits.
        loss_plain: with all of them as they are, added up.
    """

    __repr__ = one_line

    scales: tuple[Float64[Tensor, "layers blocks"], ...]
    edits: tuple[Edit, ...]
    loss: float
    loss_without: float
    loss_plain: float


@torch.inference_mode(False)  # there, no gradient could be taken of what the model computes
@torch.enable_grad()
def learn_scales(
    hooked: HookedModel,
    edits: Sequence[Edit],
    keep: Iterable[Any] | None = None,
    *,
    forget: Iterable[Any] | None = None,
    row_blocks: int = 1,
    l2: float = 1e-3,
) -> LearntScales:
    r"""Learn one scale for every edit and layer, by the labels of a few images.

    Minimized is $CE(keep) - \min(CE(forget), \log C) + \frac{l2}{2} \sum \lambda^2$, each CE a mean
    over images and the minimum taken for each image: an image that the model knows no better than
    chance is forgotten, and nothing is gained by more (the paper's loss has no such bound). L-BFGS
    with all images at once starts from no edit or from all as they are, whichever is better, and
    never ends worse than that. The loss is not convex: it is a local optimum.

    A gate's change of the weights is no multiple of its strength; it is taken as it is, as an
    update of the weights, and where several gates meet they add up instead of multiplying.

    Args:
        hooked: the attached model, without edits on the layers that change; nothing is applied.
        edits: of any sites, made for this model.
        keep: (images, labels) batches whose labels are to be predicted.
        forget: batches whose labels are not to be; at least one of both is needed.
        row_blocks: in how many runs of rows each layer's outputs are split.
        l2: pull towards no edit at all, above 0.

    Raises:
        InputError: if there are no edits or images, a label is no class, an edit is of tied
            weights, or an option is out of range.
        BaseMismatchError: if an edit was made for another model.
        EditStateError: if other edits are on the same layers.
    """
    check_attached(hooked)
    if not isinstance(edits, Sequence) or not edits:
        raise InputError(f"edits {edits!r:.200} are to be a list of at least one")
    if whole(row_blocks, "row_blocks") < 1 or not 0 < real(l2, "l2") < 1e12:
        raise InputError(f"row_blocks {row_blocks} and l2 {l2!r}: expected at least 1, and above 0")
    wanted, unwanted = (_held(hooked, data) for data in (keep, forget))
    if not wanted and not unwanted:
        raise InputError("nothing says what the scales are for: give keep=, forget=, or both")
    changes = [changes_of(hooked.model, edit) for edit in edits]
    objective = _Objective(hooked, changes, wanted, unwanted, row_blocks, l2)
    with evaluating(hooked.model):
        none, all_of_them = np.zeros(objective.n_scales), np.ones(objective.n_scales)
        without, plain = objective(none)[0], objective(all_of_them)[0]
        if not isfinite(without):
            raise InputError("logits are NaN or infinite; check the images and the model's weights")
        # Of equally good starts the one without edits: the pull is towards it. So it is where
        # logits overflow with all of them.
        learnt, loss = _minimized(objective, all_of_them if plain < without else none)
    scales = objective.by_edit(torch.from_numpy(learnt))
    scaled: list[Edit] = []
    for edit, own, layers in zip(edits, scales, changes, strict=True):
        scaled += _scaled(hooked, edit, own, layers)
    return LearntScales(tuple(scales), tuple(scaled), loss, without, plain)


class _Objective:
    """The loss and its gradient at given scales."""

    def __init__(
        self, hooked: HookedModel, changes: Sequence[Sequence[LayerChange]],
        keep: list[LabelledImages], forget: list[LabelledImages], row_blocks: int, l2: float,
    ) -> None:  # fmt: skip
        self.model, self.changes = hooked.model, changes
        self.keep, self.forget, self.row_blocks, self.l2 = keep, forget, row_blocks, l2
        self.n_scales, self.n_classes = row_blocks * sum(map(len, changes)), 0

    def by_edit(self, flat: Tensor) -> list[Tensor]:
        """Return the scales of each edit, (layers, row blocks)."""
        sizes = [len(layers) * self.row_blocks for layers in self.changes]
        return [part.reshape(-1, self.row_blocks) for part in torch.split(flat, sizes)]

    def __call__(self, flat: Any) -> tuple[float, Any]:
        """Return loss and gradient, as the solver asks for them."""
        scales = torch.from_numpy(flat).clone().requires_grad_()
        parameters = self._parameters(scales)
        value = self.l2 / 2 * flat @ flat
        gradient = self.l2 * flat
        # Batch by batch, so that one graph at a time is in memory.
        for batches, sign in ((self.keep, 1.0), (self.forget, -1.0)):
            count = sum(len(batch.labels) for batch in batches)
            for batch in batches:
                losses = self._losses(parameters, batch)
                if sign < 0:  # beyond chance nothing pulls any more: the gradient is zero there
                    losses = losses.clamp(max=float(np.log(self.n_classes)))
                part = sign * losses.sum() / count
                # Retained, since every batch goes back to the scales through the graph of the one
                # set of parameters. For the scales alone, so that the model's parameters gather no
                # gradients.
                (own,) = torch.autograd.grad(part, scales, retain_graph=True)
                value += float(part.detach())
                gradient = gradient + own.numpy()
                del losses, part  # else this batch's graph lives on during the next forward pass
        return float(value), gradient

    def _parameters(self, scales: Tensor) -> dict[str, Tensor]:
        """Return the changed parameters by path, in float64 until they are cast once."""
        totals: dict[str, Tensor] = {}
        for layers, own in zip(self.changes, self.by_edit(scales), strict=True):
            for layer, factors in zip(layers, own, strict=True):
                for path, change in layer.tensors.items():
                    rows = layer.spread(factors)
                    scaled = change * rows.reshape(-1, *[1] * (change.ndim - 1))
                    totals[path] = totals[path] + scaled if path in totals else scaled
        base = {path: self.model.get_parameter(path).detach() for path in totals}
        return {path: (base[path].cpu().double() + totals[path]).to(base[path]) for path in totals}

    def _losses(self, parameters: dict[str, Tensor], batch: LabelledImages) -> Tensor:
        """Return the cross-entropy of each image, float64."""
        images = as_input(self.model, batch.images)
        with refused_in_words(self.model, images, f"batch {batch.number}"):
            logits = functional_call(self.model, parameters, (images,))
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise InputError(f"the model returns {type(logits).__name__}, no logits")
        logits = two_sided(logits)
        self.n_classes = logits.shape[1]
        check_labels(batch.labels, self.n_classes)
        # Autograd keeps labels, and refuses those that were made in inference mode.
        labels = batch.labels.clone()
        losses: Tensor = functional.cross_entropy(logits.cpu().double(), labels, reduction="none")
        return losses


def _minimized(objective: _Objective, start: Any) -> tuple[Any, float]:
    """Return the scales at a local optimum, and the loss there."""
    from scipy.optimize import minimize

    result = minimize(
        objective, start, jac=True, method="L-BFGS-B",
        options={"maxiter": STEPS, "ftol": 1e-10, "gtol": 1e-7},
    )  # fmt: skip
    return result.x, float(result.fun)


def _held(hooked: HookedModel, data: Iterable[Any] | None) -> list[LabelledImages]:
    """Return all batches: they are few, and every step of the solver needs them all."""
    return [] if data is None else list(model_batches(hooked, data))


def _scaled(
    hooked: HookedModel, edit: Edit, scales: Tensor, layers: Sequence[LayerChange]
) -> list[Edit]:
    """Return an edit with its scales: itself at a multiple, or updates of its layers."""
    # A gate's own strength bends its change of the weights; scaled as it is, it is an update.
    if scales.numel() == 1 and not isinstance(edit.operator, Gate):
        return [at_multiple(edit, float(scales))]
    note = f"edit {edit.digest[:12]} at learnt scales, {edit.provenance.note}"
    return [
        edit_at(
            hooked, edit.site.name, layer.update(factors), rows=layer.rows, role=edit.role,
            layer=layer.path, provenance=Provenance("written", note=note[:1000]),
        )
        for layer, factors in zip(layers, scales, strict=True)
    ]  # fmt: skip
