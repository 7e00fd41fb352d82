"""Which latents a class depends on, by what they do to its logit, at any site.

At a site with positions a class's mean code says little: most positions are background, whose
latents are on in every class. What a latent does to the class tells them apart: gradient times
code, summed over positions and averaged over the class's images; and, of the latents that are first
by that, the measured fall of the logit when their term is taken out of every position.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from salve_plugin.control.networks import Networks
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel, check_attached, evaluating
from salve_plugin.images import as_input
from salve_plugin.integers import whole
from salve_plugin.network import OnBaseMismatch
from salve_plugin.validate.class_gradient import class_gradient, class_rows
from salve_plugin.validate.effects import effects_of
from salve_plugin.validate.latents import check_encodes
from salve_plugin.validate.module_sides import readable
from salve_plugin.validate.reconstruction import check_finite

if TYPE_CHECKING:
    from salve_plugin.discover.dictionary import Dictionary


@dataclass(frozen=True, eq=False)
class ClassEffects:
    """What latents do to the logits of the classes, each logit taken less the mean logit.

    Attributes:
        contributions: mean over a class's images of Σ_p z_l(p) e_l(p), see `contribution`
            (classes, latents); zero for a class without images.
        falls: mean fall of the class's logit when the latent's term is taken out of every position
            (classes, latents); NaN where it was not measured.
        counts: images of each class (classes,).
    """

    __repr__ = one_line

    contributions: Float64[Tensor, "classes latents"]
    falls: Float64[Tensor, "classes latents"]
    counts: Int[Tensor, " classes"]

    def ranked(self, label: int, n: int = 5) -> list[int]:
        """Return the `n` latents that a class depends on most, best first.

        By the measured fall, where that is known, and after those by contribution.

        Raises:
            InputError: if there is no such class or it had no image, or `n` is less than 1.
        """
        if not 0 <= label < len(self.counts) or not self.counts[label]:
            raise InputError(
                f"class {label} has no image here; those that have are "
                f"{self.counts.nonzero()[:, 0].tolist()[:20]}"
            )
        n = whole(n, "n", least=1)
        falls = self.falls[label]
        by_fall = falls.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        first = by_fall[: int(falls.isfinite().sum())].tolist()
        rest = self.contributions[label].argsort(descending=True, stable=True).tolist()
        return (first + [latent for latent in rest if latent not in set(first)])[:n]


@torch.inference_mode(False)  # there, no gradient could be taken of what the model computes
@torch.no_grad()
def class_effects(
    hooked: HookedModel,
    dictionary: "Dictionary",
    loader: Iterable[Any],
    *,
    candidates: int = 8,
    on_base_mismatch: OnBaseMismatch = "error",
) -> ClassEffects:
    """Measure what the latents of a dictionary do to the classes of labelled images.

    Args:
        hooked: the attached model; run in eval mode, and left as it was found.
        dictionary: of any of its sites.
        loader: yields (images, labels) batches, the same ones each time; labels are class indices.
        candidates: how many latents of each class are also taken out, each costing a forward pass
            of the class's images; 0 for none.
        on_base_mismatch: "warn" takes a dictionary of another network too.

    Raises:
        InputError: if the loader or the images are not usable, the classifier reads several sites,
            or `candidates` is negative.
        UnknownSiteError: if the model lacks the dictionary's site.
        BaseMismatchError: if the dictionary was learned from another network than the model.
        AttributionError: if no class depends on the site.
    """
    check_attached(hooked)
    check_encodes(dictionary, "post")
    candidates = whole(candidates, "candidates", least=0)
    site = readable(hooked.site(dictionary.site.name), dictionary)
    Networks(hooked, on_base_mismatch).check_either(
        "the dictionary", getattr(dictionary, "network", None)
    )
    directions = class_rows(hooked)
    n_classes, axis = len(directions), site.channel_axis
    sums = torch.zeros(n_classes, dictionary.n_latents, dtype=torch.float64)
    counts = torch.zeros(n_classes, dtype=torch.long)
    module = hooked.model.get_submodule(site.module), site.side
    with evaluating(hooked.model):
        for batch in model_batches(hooked, loader):
            images, labels = as_input(hooked.model, batch.images), batch.labels
            _, cache = hooked.run_with_cache(images, names_filter=site.name)
            features, run = cache[site.name], partial(hooked.model, images)
            check_finite(features, f"activations at '{site.name}'")
            gradient = class_gradient(hooked, module, features, directions[labels], run)
            codes, effects = effects_of(
                dictionary, features.movedim(axis, -1), gradient.movedim(axis, -1)
            )
            sums.index_add_(0, labels, (codes * effects).sum(1).cpu().double())
            counts += torch.bincount(labels, minlength=n_classes)
        contributions = sums / counts.clamp(min=1)[:, None]
        falls = torch.full_like(contributions, torch.nan)
        if candidates:
            chosen = contributions.topk(min(candidates, dictionary.n_latents), dim=1).indices
            # A class without images has candidates too, of zeros, which nothing was measured of.
            seen = (counts > 0).nonzero()
            fallen = _falls(hooked, dictionary, loader, chosen) / counts.clamp(min=1)[:, None]
            # A column of classes, each of which goes with all candidates in its row.
            falls[seen, chosen[seen[:, 0]]] = fallen[seen[:, 0]]
    return ClassEffects(contributions, falls, counts)


def _falls(
    hooked: HookedModel,
    dictionary: "Dictionary",
    loader: Iterable[Any],
    chosen: Int[Tensor, "classes candidates"],
) -> Float64[Tensor, "classes candidates"]:
    """Return how far the logits of a class's images fall in all without each chosen latent."""
    site = hooked.site(dictionary.site.name)
    sums = torch.zeros(chosen.shape, dtype=torch.float64)
    for batch in model_batches(hooked, loader):
        images, labels = as_input(hooked.model, batch.images), batch.labels
        whole = _logits(hooked(images), labels)
        for number, latents in enumerate(chosen[labels].T):
            without = partial(
                _without, dictionary=dictionary, axis=site.channel_axis, latents=latents
            )
            edited = hooked.run_with_hooks(images, fwd_hooks=[(site.name, without)])
            sums[:, number].index_add_(0, labels, whole - _logits(edited, labels))
    return sums


def _without(
    activation: Tensor, hook: object, dictionary: "Dictionary", axis: int, latents: Tensor
) -> Tensor:
    """Return the activation without one latent's term in each image; the error stays."""
    rows = activation.movedim(axis, -1)
    codes = dictionary.encode(rows)
    off = torch.ones(len(codes), codes.shape[-1], device=codes.device, dtype=codes.dtype)
    off.scatter_(1, latents.to(codes.device)[:, None], 0.0)
    off = off.reshape(len(codes), *[1] * (codes.ndim - 2), -1)
    # Added as a difference of two decodings: the offset and the error stay as they are, and a
    # decoder that is not linear has no single term to subtract.
    change = dictionary.decode(codes * off) - dictionary.decode(codes)
    return activation + change.movedim(-1, axis).to(activation)


def _logits(logits: Tensor, labels: Tensor) -> Float64[Tensor, " batch"]:
    """Return each image's own logit less the mean logit."""
    logits = logits.cpu().double()
    if logits.shape[1] == 1:
        # A single logit is class 1 against class 0: the difference of two logits, half of it each.
        logits = torch.cat([-logits, logits], 1) / 2
    return logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)
