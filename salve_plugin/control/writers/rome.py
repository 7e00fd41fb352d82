"""ROME: one key and its value written into the layer that reads a site."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.operators.base import real
from salve_plugin.control.writers.associations import check_new, vectors, written_update
from salve_plugin.control.writers.evidence import (
    RIDGE,
    Recorded,
    check_seen,
    class_indices,
    head_inputs,
    second_moment,
)  # fmt: skip
from salve_plugin.control.writers.layer import head_of, layer_at
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch


def rome(
    hooked: HookedModel,
    site: str,
    key: Float[Tensor, " inputs"],
    value: Float[Tensor, " outputs"],
    second_moment_of: Activations | Tensor,
    *,
    layer: str | None = None,
    ridge: float = RIDGE,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Edit:
    r"""Return the rank-one edit by which a layer gives a value for a key.

    $W' = W + (v^* - Wk^* - b)\, u^T / (u^Tk^*)$ with $u = (C + \eta I)^{-1} k^*$. Of all weights
    with $W'k^* + b = v^*$ it changes least what the layer makes of everything else:
    $tr((W'-W)(C + \eta I)(W'-W)^T)$ is smallest (Meng et al. 2022, arXiv 2202.05262, Eq. 2).

    Args:
        hooked: the attached model; nothing is applied.
        site: what the layer reads, e.g. `unembed.hook_in` or `blocks.3.mlp.hook_post`.
        key: $k^*$, an input of the layer; `class_association` gives that of a class.
        value: $v^*$, the output that it is to have, bias included; see `rome_value`.
        second_moment_of: a recording of the site, from which $C = E[kk^T]$ is computed, or C.
            A recording of tokens leaves out class and register tokens.
        layer: path of the layer, where several read the site.
        ridge: $\eta$ in units of the mean second moment; 0 needs more samples than inputs.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        UnknownSiteError: if the model has no such site.
        BaseMismatchError: if the recording is of another network than the model, or another site.
        InputError: if shapes do not fit, C cannot be inverted, or there is nothing to write.
        UnsupportedModelError: if no layer that can be edited reads the site.
    """
    target = layer_at(hooked, site, layer)
    outputs, inputs = target.weight.shape
    keys = vectors(key, "key", inputs, count=1)
    residual = vectors(value, "value", outputs, count=1) - target.output(keys)
    check_new(target, residual)
    moment = second_moment(target, second_moment_of, on_base_mismatch)
    update = written_update(keys, residual, moment, preservation=0.0, ridge=ridge)
    # Outputs that stay are no part of the edit: at the head, that of one class has one row.
    rows = residual[0].nonzero()[:, 0].tolist()
    note = f"written by ROME: a value for one key of '{target.path}', ridge {ridge:g}"
    if len(rows) == outputs:
        return target.updated(update, note)
    return target.updated(LowRankUpdate(update.left[rows], update.right), note, rows)


def class_association(
    hooked: HookedModel,
    label: int | str,
    acts: Recorded,
    *,
    logit: float | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> tuple[Float64[Tensor, " width"], Float64[Tensor, " classes"]]:
    """Return the key of a class at the classifier, and the value that makes it forgotten.

    Args:
        hooked: the attached model.
        label: the class, by index or by the recording's name.
        acts: recorded head inputs with labels; the key is the mean of those of the class.
        logit: the class's logit for the key; by default the mean of the other classes' logits.
            Those stay.
        on_base_mismatch: "warn" takes a recording of another network.

    Returns:
        The key (width,) and the value (classes,), as `rome` and `memit` take them.

    Raises:
        BaseMismatchError: if the recording is of another network than the model as it is.
        InputError: if there are no images of the class, or it is none of the head.
        UnsupportedModelError: if the classifier is not one layer.
    """
    layer = head_of(hooked)
    x, labels = head_inputs(layer, acts, on_base_mismatch)
    classes = class_indices(label, layer, acts)
    if len(classes) != 1:
        raise InputError(f"label {label!r} is to be one class; ask for each class's on its own")
    check_seen(classes, labels)
    (index,) = classes
    key = x[labels == index].mean(0)
    value = layer.output(key[None])[0]
    # The other logits are taken from the layer itself, so that nothing is written for them.
    others = torch.cat([value[:index], value[index + 1 :]])
    value[index] = others.mean() if logit is None else real(logit, "logit")
    if not bool(value.isfinite().all()):
        raise InputError(f"logit {logit!r} is to be a finite number")
    return key, value
