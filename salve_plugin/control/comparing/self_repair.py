"""Self-repair: how much of a hidden edit's effect later layers make good again."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.control.edit import Edit, check_edit
from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.hooked_change import changed_by_hooks
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel, check_attached, evaluating, reading, tapped
from salve_plugin.images import run
from salve_plugin.integers import whole
from salve_plugin.site import Count, Site
from salve_plugin.store.record import Name, Record

RESIDUAL = re.compile(r"blocks\.\d+\.hook_(resid_(pre|mid|post)|attn_out|mlp_out)")
"""Sites of a transformer whose change the later blocks pass on, by addition, as it is."""


@dataclass(frozen=True)
class SelfRepair(Record):
    """What an edit does to one logit with and without the answers of later layers.

    Attributes:
        label: whose logit.
        departs: site where the edit first changes what is passed on.
        arrives: site where that change is added when later layers do not answer.
        full: mean change of the logit in the edited model.
        direct: mean change of the logit when all layers in between compute what they did before.
        n_images: over which both are means.
    """

    __repr__ = one_line

    label: Count
    departs: Name
    arrives: Name
    full: float
    direct: float
    n_images: Count

    @property
    def recovery(self) -> float | None:
        """1 - full / direct: 0 nothing is made good, 1 all, below 0 later layers add to it.

        Of the means, since single images whose direct effect is about zero would drown all others.
        None without any direct effect.
        """
        return None if self.direct == 0 else 1 - self.full / self.direct


@torch.no_grad()
def self_repair(
    hooked: HookedModel,
    edit: Edit,
    images: Float[Tensor, "images ..."],
    label: int,
    *,
    departs: str | None = None,
    arrives: str | None = None,
) -> SelfRepair:
    r"""Return how far later layers make good what an edit does to a logit.

    Recovery is $1 - \Delta_{full} / \Delta_{direct}$ (after Rushing & Nanda 2024, arXiv 2402.15390,
    and McGrath et al. 2023, arXiv 2307.15771). On the direct path the change of the residual stream
    is added where the last block hands it on, so that the blocks in between do not see it; the last
    normalization does, in both. For an edit of what the classifier reads nothing lies behind it,
    and recovery is 0.

    Args:
        hooked: the attached model; the edit must not be on it, and is not afterwards.
        edit: of any site.
        images: (images, channels, height, width), in one pass.
        label: class whose logit is followed.
        departs: site at which the edit's own effect is read. By default the first one on or after
            the edit's site from which later blocks take it by addition: known for transformers.
        arrives: site to which it is added; by default the last block's output. Both must have one
            shape.

    Raises:
        UnsupportedModelError: if no path by addition is known, as in networks whose stages differ
            in width.
        UnknownSiteError: if there is no such site.
        InputError: if the images or the label cannot be used, or the sites do not follow each other
            or differ in shape.
        SalveError: as `Edit.apply_`.
    """
    check_attached(hooked)
    check_edit(edit)
    model, index = hooked.model, whole(label, "label")
    site = hooked.site(edit.site.name)
    behind = bool(set(site.readers) & set(hooked.heads))
    # Where the classifier reads the site itself there is no way for later layers to answer on.
    ends = (site, site) if behind else _ends(hooked, edit, departs, arrives)
    with evaluating(model):
        with reading(model, ends) as clean:
            before = _logits(model, images, index)
        with edit.applied(model), reading(model, ends) as changed:
            full = _logits(model, images, index)
        source, sink = ends
        if behind:
            # The same change, made to what the classifier reads.
            with changed_by_hooks(model, edit, site):
                direct = _logits(model, images, index)
        else:
            change = changed[source.name] - clean[source.name]
            if change.shape != clean[sink.name].shape:
                raise InputError(
                    f"'{source.name}' is {list(change.shape)} and '{sink.name}' "
                    f"{list(clean[sink.name].shape)}: a change of one cannot be added to the other"
                )
            with tapped(model, sink, lambda activation: activation + change):
                direct = _logits(model, images, index)
    return SelfRepair(
        index, source.name, sink.name, float((full - before).mean()),
        float((direct - before).mean()), len(images),
    )  # fmt: skip


def _ends(
    hooked: HookedModel, edit: Edit, departs: str | None, arrives: str | None
) -> tuple[Site, Site]:
    """Return the sites where the direct path begins and ends."""
    order = list(hooked.sites)
    at = order.index(edit.site.name)
    # What readers take over is not to be seen at their own site, but behind them.
    first = at if edit.role == "writer" else at + 1
    source = departs or next((n for n in order[first:] if RESIDUAL.fullmatch(n)), None)
    sink = arrives or next((n for n in order[::-1] if n.endswith(".hook_resid_post")), None)
    if source is None or sink is None:
        raise _no_path(edit, source, sink)
    ends = hooked.site(source), hooked.site(sink)
    # By their names there: a layer's path is another name for its site.
    begin, end = (order.index(each.name) for each in ends)
    if begin < first or end < begin:
        raise InputError(
            f"the direct path of an edit of '{edit.site.name}' cannot go from '{source}' to "
            f"'{sink}': they are to follow it in the order of {order}"
        )
    given = departs is not None and arrives is not None
    if not given and (ends[0].layout, ends[0].width) != (ends[1].layout, ends[1].width):
        raise _no_path(edit, source, sink)
    return ends


def _no_path(edit: Edit, source: str | None, sink: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"no path by addition is known from '{edit.site.name}' (by '{source}') to the classifier "
        f"(by '{sink}'), so that nothing says what the edit would do if later layers did not "
        "answer; where there is one, name its ends: departs=, arrives="
    )


def _logits(model: torch.nn.Module, images: Tensor, label: int) -> Tensor:
    """Return the logit of one class for every image, in float64."""
    output = run(model, images, "images")
    if not isinstance(output, Tensor) or output.ndim != 2 or not 0 <= label < output.shape[1]:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"label {label} is no class of a model that returns {shape}")
    check_logits(output, len(images))
    return output[:, label].double()
