"""What a model answers on given images, as it is and with one edit more."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn

from salve_plugin.control.choosing.head import JudgedHead
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.ledger import ledger_of
from salve_plugin.control.slots import slots_of
from salve_plugin.control.solving import two_sided
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.discover.recording.loader import LabelledImages, labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, check_attached, evaluating
from salve_plugin.images import run

Data = Activations | Iterable[Any]
"""Recorded inputs of the classifier, or a loader of (images, labels) that can be read again."""


@dataclass(frozen=True, eq=False)
class Responses:
    """Logits of a model on the same images, with and without edits.

    Attributes:
        base: logits of the model as it is, other edits included, (images, classes).
        labels: (images,).
        after: gives the logits with an edit; the model is as it was when it returns.
    """

    base: Float64[Tensor, "images classes"]
    labels: Int64[Tensor, " images"]
    after: Callable[[Edit], Float64[Tensor, "images classes"]]

    @classmethod
    def of(cls, hooked: HookedModel, data: Data, *, by_class: bool) -> "Responses":
        """Compute the base logits; each later edit costs one more pass over the data.

        Args:
            hooked: the attached model.
            data: a recording of the classifier's input, for edits of the classifier, where a pass
                is one product of matrices; or a loader, for edits of any site.
            by_class: whether labels count, as the model's class indices; else a loader's own tell
                only whether it gives the same images again.

        Raises:
            InputError: if the data are neither, a loader can be read once only, or gives other
                images the next time; or the model does not take them.
        """
        check_attached(hooked)
        if isinstance(data, Activations):
            head = JudgedHead.of(hooked, [data])
            return cls(head.logits.double(), head.labels, lambda edit: _at_head(head, edit))
        if isinstance(data, Tensor) or not isinstance(data, Iterable) or iter(data) is data:
            raise InputError(
                f"data {type(data).__name__} are to be a recording of the classifier's input, or "
                "batches of (images, labels) that can be read again for every edit: a list, or a "
                "DataLoader"
            )

        def batches() -> Iterator[LabelledImages]:
            return model_batches(hooked, data) if by_class else labelled_batches(data, None)

        base, labels = _run(hooked.model, batches())

        def after(edit: Edit) -> Tensor:
            with edit.applied(hooked.model):
                logits, again = _run(hooked.model, batches())
            if not labels.equal(again):
                raise InputError(
                    "the loader gave other labels the second time, so that answers cannot be "
                    "compared image by image; switch shuffling off"
                )
            return logits

        return cls(base, labels, after)


def mean_kl(
    base: Float64[Tensor, "images classes"], other: Float64[Tensor, "images classes"]
) -> float:
    """Return the mean over images of KL(softmax base || softmax other), in nats."""
    # In log probabilities: a probability that underflows to 0 would make the ratio infinite.
    before, after = base.log_softmax(1), other.log_softmax(1)
    # Rounding may leave a divergence of about -1e-17 where there is none.
    return max(0.0, float((before.exp() * (before - after)).sum(1).mean()))


def _at_head(head: JudgedHead, edit: Edit) -> Tensor:
    if edit.site.name != head.site.name:
        raise InputError(
            f"the recording is of '{head.site.name}', and the edit is of '{edit.site.name}', whose "
            "effect on the logits only a forward pass tells: give a loader of images"
        )
    # A recorded classifier is edited as it is, which for an edit made for the pristine one would be
    # another edit.
    slots = slots_of(head.hooked.model, edit.base.tensors)
    if any(ledger_of(slot) is not None for slot in slots.values()):
        raise InputError(
            "other edits are on the classifier; revert them, or give a loader of images, with "
            "which edits add up as they do in the model"
        )
    logits: Tensor = head.after(edit).double()
    if not bool(logits.isfinite().all()):
        raise InputError(f"with edit {edit.digest[:12]} logits are NaN or infinite")
    return logits


@torch.no_grad()
def _run(model: nn.Module, batches: Iterator[LabelledImages]) -> tuple[Tensor, Tensor]:
    """Return float64 logits and labels of all images, in eval mode; one logit has two sides."""
    logits, labels = [], []
    with evaluating(model):
        for batch in batches:
            answer = run(model, batch.images, f"batch {batch.number}")
            check_logits(answer, len(batch.labels))
            logits.append(two_sided(answer.cpu().double()))
            labels.append(batch.labels)
    return torch.cat(logits), torch.cat(labels)
