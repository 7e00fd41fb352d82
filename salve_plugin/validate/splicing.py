"""What a model still does when reconstructions take the place of the activations."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from salve_plugin.control.solving import check_labels, two_sided
from salve_plugin.discover.recording.loader import labelled_batches
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating, tapped
from salve_plugin.images import run
from salve_plugin.site import Rewrite, Site, replacing
from salve_plugin.validate.reconstruction import check_finite

_LEAST_LOSS = 1e-6
"""An ablation that costs less than this leaves nothing to recover."""


@dataclass(frozen=True)
class Behaviour:
    """What a model predicts.

    Attributes:
        cross_entropy: mean over images of −log p(label), in nats.
        accuracy: share of images whose label has the largest logit.
        kl: mean over images of KL(untouched model ‖ this one), in nats.
    """

    cross_entropy: float
    accuracy: float
    kl: float


@dataclass(frozen=True)
class Splice:
    """A model untouched, with reconstructions spliced in, and with the site ablated.

    Attributes:
        clean: the model untouched.
        spliced: every activation replaced by its reconstruction.
        mean: every activation replaced by the mean of the training rows.
        zero: every activation replaced by zero.
        n_images: number of images.
    """

    clean: Behaviour
    spliced: Behaviour
    mean: Behaviour
    zero: Behaviour
    n_images: int

    @property
    def ce_recovered(self) -> float | None:
        """(CE_mean − CE_spliced) / (CE_mean − CE_clean): 1 is perfect, 0 no better than the mean.

        None if ablating the site by its mean does not raise the cross-entropy.
        """
        lost = self.mean.cross_entropy - self.clean.cross_entropy
        gained = self.mean.cross_entropy - self.spliced.cross_entropy
        return gained / lost if lost > _LEAST_LOSS else None

    @property
    def accuracy_recovered(self) -> float | None:
        """(acc_spliced − acc_mean) / (acc_clean − acc_mean).

        None if ablating the site by its mean does not lower the accuracy.
        """
        lost = self.clean.accuracy - self.mean.accuracy
        gained = self.spliced.accuracy - self.mean.accuracy
        return gained / lost if lost > _LEAST_LOSS else None


def splice_head(
    weight: Float[Tensor, "classes features"],
    bias: Float[Tensor, " biases"],
    x: Float[Tensor, "images width"],
    labels: Int[Tensor, " labels"],
    rewrites: Mapping[str, Rewrite],
    *,
    mean: Float[Tensor, " width"],
) -> dict[str, Splice]:
    """Splice at the classifier's input, in closed form: logits are x̂ Wᵀ + b, without the model.

    Args:
        weight: W, as from `HookedModel.unembed`.
        bias: b.
        x: recorded inputs of the classifier.
        labels: class of each image.
        rewrites: what to splice in, by name; dictionaries are such functions.
        mean: of the training rows.

    Returns:
        A `Splice` for each rewrite.

    Raises:
        InputError: if shapes do not fit, a label is no class, or a logit is NaN or infinite.
    """
    if weight.shape != (len(bias), x.shape[1]) or len(labels) != len(x) or not len(x):
        raise InputError(
            f"a head of shape {tuple(weight.shape)} with {len(bias)} biases, inputs "
            f"{tuple(x.shape)} and {len(labels)} labels do not fit together; expected (classes, "
            "features), one bias a class, inputs (images, features) and one label an image"
        )

    def logits(rewrite: Rewrite) -> Tensor:
        # In float64, or rounding would decide what an almost perfect reconstruction loses.
        rows = rewrite(x).to(weight.device).double()
        return torch.addmm(bias.double(), rows, weight.double().T).cpu()

    tallies = _Tallies(rewrites, mean)
    tallies.add(logits, labels)
    return tallies.splices()


@torch.no_grad()
def splice_images(
    hooked: HookedModel,
    site: Site,
    batches: Iterable[Any],
    rewrites: Mapping[str, Rewrite],
    *,
    mean: Float[Tensor, " width"],
) -> dict[str, Splice]:
    """Splice at any site, by running the model: once as it is and once for each replacement.

    In token sites the class and register tokens, which recordings leave out, stay as they are in
    every run, ablations too. The model runs in eval mode and is left as it was found.

    Args:
        hooked: the attached model.
        site: where.
        batches: any iterable of (images, labels).
        rewrites: what to splice in, by name; dictionaries are such functions.
        mean: of the training rows.

    Returns:
        A `Splice` for each rewrite.

    Raises:
        InputError: if there are no images, a label is no class of the model, or a logit is NaN or
            infinite.
        ReadError: if the data set cannot read an image.
    """
    tallies = _Tallies(rewrites, mean)
    with evaluating(hooked.model):
        for batch in labelled_batches(batches, None):
            name = f"batch {batch.number}"

            # Bound as defaults: a closure would see whatever the loop has come to.
            def logits(rewrite: Rewrite, images: Tensor = batch.images, name: str = name) -> Tensor:
                with tapped(hooked.model, site, replacing(site, rewrite)):
                    result: Tensor = run(hooked.model, images, name)
                return result.cpu().double()

            tallies.add(logits, batch.labels)
    return tallies.splices()


class _Tallies:
    """Sums over images of what every replacement does to the predictions."""

    def __init__(self, rewrites: Mapping[str, Rewrite], mean: Tensor) -> None:
        ablations: dict[str, Rewrite] = {
            "clean": lambda rows: rows,
            "mean": lambda rows: mean.to(rows).expand_as(rows),
            "zero": torch.zeros_like,
        }
        # Names of rewrites are the caller's, so they are kept apart from these three.
        self._rewrites = {("own", name): rewrite for name, rewrite in ablations.items()}
        self._rewrites |= {("given", name): rewrite for name, rewrite in rewrites.items()}
        self._sums = {key: torch.zeros(3, dtype=torch.float64) for key in self._rewrites}
        self._n_images = 0

    def add(self, logits: Callable[[Rewrite], Tensor], labels: Tensor) -> None:
        """Take a batch into account; `logits` runs it with a replacement."""
        clean: Tensor | None = None
        for key, rewrite in self._rewrites.items():
            batch_logits = two_sided(logits(rewrite))
            _check_logits(batch_logits, labels)
            log_p = functional.log_softmax(batch_logits, dim=1)
            clean = log_p if clean is None else clean  # the untouched model comes first
            # Torch's order is turned about: kl_div(log q, log p) is KL(p ‖ q), here of the
            # untouched model.
            kl = functional.kl_div(log_p, clean, reduction="sum", log_target=True)
            entropy = functional.nll_loss(log_p, labels, reduction="sum")
            right = (batch_logits.argmax(1) == labels).sum().double()
            self._sums[key] += torch.stack([entropy, right, kl])
        self._n_images += len(labels)

    def splices(self) -> dict[str, Splice]:
        """Return the means."""
        behaviours = {
            key: Behaviour(*(sums / self._n_images).tolist()) for key, sums in self._sums.items()
        }
        clean, mean, zero = (behaviours["own", name] for name in ("clean", "mean", "zero"))
        return {
            name: Splice(clean, behaviour, mean, zero, self._n_images)
            for (kind, name), behaviour in behaviours.items()
            if kind == "given"
        }


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            f"expected logits ({len(labels)}, classes), the model returned {tuple(logits.shape)}; "
            "splicing needs a classifier with one row of logits an image"
        )
    check_labels(labels, logits.shape[1])
    check_finite(logits, "logits")
