"""What lies between a layer and the site that it writes: scales and BatchNorms as one map."""

import torch
from torch import Tensor, nn

from salve_plugin.control.operators import Fold
from salve_plugin.control.slots import module_at
from salve_plugin.errors import UnsupportedModelError


def affine_bias(model: nn.Module, affine: tuple[str, ...]) -> str | None:
    """Return the bias that is added last, which reaches the site as it is."""
    if not affine or _scale_at(model, affine[-1]) is not None:
        return None
    last = module_at(model, affine[-1])
    return f"{affine[-1]}.bias" if last._parameters.get("bias") is not None else None


@torch.no_grad()
def fold_of(model: nn.Module, affine: tuple[str, ...], bias: str | None, width: int) -> Fold:
    """Return the affine map of the modules between a writer and its site, in float64.

    Args:
        model: the bare model.
        affine: paths of LayerScale-like modules, BatchNorms and scales that are parameters of the
            block, in order.
        bias: path of the bias that is edited; if it is the last module's, `shift` is without it.
        width: of the site; used where there are no modules.

    Raises:
        UnsupportedModelError: if a module is not per feature, or scales a feature by zero.
    """
    if not affine:
        return Fold.none(width)
    scale, shift = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    last_is_edited = bias == f"{affine[-1]}.bias"
    for path in affine:
        # Left out, not subtracted again: adding a bias and taking it away rounds as the bias wants,
        # so that the same norm would look like another one once an edit has moved its bias.
        without_bias = last_is_edited and path == affine[-1]
        own_scale, own_shift = _affine_map(model, path, without_bias)
        # What follows acts on what is there: s₂(s₁y + t₁) + t₂.
        scale, shift = own_scale * scale, own_scale * shift + own_shift
    if not bool((scale.isfinite() & (scale != 0)).all()):
        raise UnsupportedModelError(
            f"{list(affine)} scale a feature by zero or by nothing finite, so what the layer "
            "writes cannot be told from the site; choose another site"
        )
    return Fold(scale, shift, last_is_edited)


def _affine_map(model: nn.Module, path: str, without_bias: bool) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a BatchNorm in eval mode, or the scale that stands alone."""
    gamma = _scale_at(model, path)
    if gamma is not None:
        flat = gamma.cpu().double().reshape(-1)
        return flat, torch.zeros_like(flat)
    module = module_at(model, path)
    # Without running statistics a BatchNorm divides by those of the batch, which is no fixed map.
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) or module.running_mean is None:
        raise UnsupportedModelError(
            f"'{path}' is a {type(module).__name__}; between a layer and its site only BatchNorm "
            "(with running statistics) and LayerScale can be folded"
        )
    assert module.running_var is not None
    mean, variance = module.running_mean.cpu().double(), module.running_var.cpu().double()
    scale = 1 / (variance + module.eps).sqrt()
    if module.weight is not None:
        scale = module.weight.cpu().double() * scale
    shift = -mean * scale
    if module.bias is None or without_bias:
        return scale, shift
    return scale, shift + module.bias.cpu().double()


def _scale_at(model: nn.Module, path: str) -> nn.Parameter | None:
    """Return what scales features and adds nothing: a LayerScale's gamma, or a parameter itself.

    Raises:
        BaseMismatchError: if nothing has this path.
    """
    owner, _, name = path.rpartition(".")
    parameter = module_at(model, owner)._parameters.get(name)
    return module_at(model, path)._parameters.get("gamma") if parameter is None else parameter
