"""Features of whole images at several sites, in a model and in its edited copy."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from salve_plugin.control.assessment.batches import Head
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.solving import check_labels, two_sided
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import run
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site

LOGITS = "logits"
"""What the network's output is called among the sites; no layer's site has that name."""


@dataclass(frozen=True, eq=False)
class SiteFeatures:
    """What a model and its edited copy give for the same images.

    Attributes:
        labels: class indices.
        before: by site, and "logits", without the edit: (images, width), float32.
        after: the same with it.
        inputs: what the classifier reads, before and after, float64; None without a site there.
        heads: the classifier, before and after; likewise.
    """

    labels: Int64[Tensor, " images"]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    inputs: tuple[Tensor, Tensor] | None
    heads: tuple[Head, Head] | None


def site_features(
    hooked: HookedModel,
    edit: Edit,
    loader: Iterable[Any],
    chosen: Sequence[Site],
    mismatch: OnBaseMismatch,
) -> SiteFeatures:
    """Run both over the images once, in eval mode; see `forgetting`.

    Raises:
        SalveError: as `forgetting`.
    """
    model = bare(hooked)
    edited = edit.edited(model, on_base_mismatch=mismatch)
    reads = [hooked.site(name) for name in hooked.head_sites]
    # Each once: what the classifier reads may be among the chosen.
    sites = list({site.name: site for site in (*chosen, *reads)}.values())
    labels: list[Tensor] = []
    parts: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
    with evaluating(model), evaluating(edited):
        for batch in model_batches(hooked, loader):
            labels.append(batch.labels)
            for network, lists in zip((model, edited), parts, strict=True):
                with reading(network, sites) as activations:
                    logits = run(network, batch.images, f"batch {batch.number}")
                check_logits(logits, len(batch.labels))
                for site in sites:
                    activation = activations[site.name]
                    if network is edited and site.name == edit.site.name:
                        activation = _as_read(hooked, edit, site, activation)
                    pooled = _pooled(site, activation, len(batch.images))
                    lists.setdefault(site.name, []).append(pooled)
                lists.setdefault(LOGITS, []).append(two_sided(logits.cpu().float()))
            check_labels(labels[-1], parts[0][LOGITS][-1].shape[1])
    before, after = ({name: torch.cat(each) for name, each in own.items()} for own in parts)
    inputs = heads = None
    head = Head.of(hooked)
    if reads and head is not None:
        inputs = (
            torch.cat([before[site.name] for site in reads], 1).double(),
            torch.cat([after[site.name] for site in reads], 1).double(),
        )
        # On the model for a moment, since the edited copy is bare: only what is attached knows its
        # heads.
        with edit.applied(model, on_base_mismatch=mismatch):
            changed = Head.of(hooked)
        assert changed is not None
        heads = (head, changed)
    return SiteFeatures(torch.cat(labels), before, after, inputs, heads)


def _as_read(hooked: HookedModel, edit: Edit, site: Site, activation: Tensor) -> Tensor:
    """Return the activation as the edited readers of a hidden site get it.

    Their weights do to it what the operator does; the activation itself stays, and nothing else
    reads it. Of the classifier the features themselves are meant: it is they that stay.
    """
    of_head = bool(set(edit.site.readers) & set(hooked.heads))
    if edit.role == "writer" or of_head or edit.rows is not None:
        return activation
    if isinstance(edit.operator, LowRankUpdate):
        return activation
    return edit.operator.activation(activation, site.channel_axis)


def _pooled(site: Site, activation: Tensor, images: int) -> Float[Tensor, "images width"]:
    """Return the mean over positions; class and register tokens have a mean of their own."""
    rows = site.rows(activation).detach().cpu().float()
    # The rows of an image follow one another, its prefix tokens first.
    rows = rows.reshape(images, -1, rows.shape[-1])
    if not site.prefix_tokens:
        return rows.mean(1)
    tokens = (rows[:, : site.prefix_tokens], rows[:, site.prefix_tokens :])
    return torch.cat([part.mean(1) for part in tokens if part.shape[1]], 1)
