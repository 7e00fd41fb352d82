"""Which linear layers might read or write an activation, from what ran on the probe."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as CastingLinear
from torch import Tensor, nn

from salve_plugin.site import Site
from salve_timm.call_log import Call, CallLog
from salve_timm.points import Point

LAYERS = (nn.Linear, CastingLinear, nn.Conv2d, Conv2dSame)
"""Layers that use their `weight` as it is; subclasses may standardize it on the way."""


@dataclass(frozen=True)
class Wiring:
    """Layers around one site, to be proven.

    Attributes:
        readers: paths of the layers that read it.
        writer: path of the layer that made it.
        chains: what may lie between that layer and the site, each the paths of per-feature modules
            or scales in order; the likeliest first.
    """

    readers: tuple[str, ...] = ()
    writer: str | None = None
    chains: tuple[tuple[str, ...], ...] = ()


def wirings_of(
    model: nn.Module, points: Sequence[Point], log: CallLog, heads: set[str]
) -> list[Wiring]:
    """Return what might surround each point; heads belong to their own sites.

    Readers are the layers that got the very tensor, else the next layer that ran. The writer is
    the latest layer that ran before, with everything per-feature since then, and perhaps a scale
    (`gamma`) that no module applies: the block itself multiplies by it. Nothing else with
    parameters may lie between, and no other module may get that tensor (a pooling, LeViT's
    subsampled queries), since its part in the gradient may be tiny. Nor is a shared weight taken,
    which would change another layer with it.

    Args:
        model: as it was when it ran.
        points: of the body.
        log: the forward pass.
        heads: paths of the classifier's layers.
    """
    # By identity: tied weights are one parameter under several modules.
    uses = Counter(
        id(weight)
        for module in model.modules()
        for weight in module._parameters.values()
        if weight is not None
    )
    ran = [call for path in log.calls if (call := log.once(path)) is not None]
    layers = [
        call
        for call in ran
        if call.path not in heads
        and is_plain(call.module)
        and uses[id(call.module.get_parameter("weight"))] == 1
    ]
    weighted = [call for call in ran if any(True for _ in call.module.parameters(recurse=False))]
    return [_wiring(model, point, log, layers, weighted) for point in points]


def is_plain(module: nn.Module) -> bool:
    """Say whether the layer applies its own weight as it is to all of its input's features."""
    grouped = isinstance(module, nn.Conv2d) and module.groups != 1
    has_weight = isinstance(module._parameters.get("weight"), nn.Parameter)
    return type(module) in LAYERS and has_weight and not grouped


def _wiring(
    model: nn.Module, point: Point, log: CallLog, layers: list[Call], weighted: list[Call]
) -> Wiring:
    # Two ways to be a reader: the very tensor was passed, or it went through views that made new
    # tensors of it (windows, a transpose), behind which the next layer gets the same features.
    later = [call for call in layers if call.began >= point.at]
    readers = [call for call in later if point.value is not None and call.source == point.value]
    if not readers and later:
        following = min(later, key=lambda call: call.began)
        if not _between(weighted, point.at, following.began):
            readers = [following]
    misfit = any(widths_of(call.module)[0] != point.site.width for call in readers)
    if misfit or _read_elsewhere(point, log, readers):
        readers = []
    wiring = Wiring(tuple(call.path for call in readers))
    earlier = [call for call in layers if call.ended <= point.at]
    writer = max(earlier, key=lambda call: call.ended, default=None)
    if writer is None or widths_of(writer.module)[1] != point.site.width:
        return wiring
    # What lies between must be foldable: s x + t, feature by feature.
    between = _between(weighted, writer.ended, point.at)
    if any(scale_and_shift(call.module) is None for call in between):
        return wiring
    modules = tuple(call.path for call in between)
    scales = _scales_around(model, writer.path, point.site)
    chains = (modules, *((*modules, scale) for scale in scales))
    return replace(wiring, writer=writer.path, chains=chains)


def _scales_around(model: nn.Module, writer: str, site: Site) -> list[str]:
    """Return parameters as wide as the site, of the innermost module around it and its writer."""
    parts = zip(writer.split("."), site.module.split("."), strict=False)
    around = ".".join(own for own, other in takewhile(lambda pair: pair[0] == pair[1], parts))
    prefix = f"{around}." if around else ""
    own = model.get_submodule(around)._parameters.items()
    return [prefix + name for name, each in own if each is not None and each.numel() == site.width]


def _read_elsewhere(point: Point, log: CallLog, readers: list[Call]) -> bool:
    """Say whether a module that is no reader, holds none and is no identity got the tensor."""
    return any(
        call.source == point.value
        and call.began >= point.at
        and call.result != call.source
        and not any(f"{reader.path}.".startswith(f"{call.path}.") for reader in readers)
        for call in log.calls.values()
        if call.path and call.source is not None
    )


def _between(weighted: list[Call], after: int, before: int) -> list[Call]:
    """Return the modules with parameters that ran between the moments, in order."""
    calls = [call for call in weighted if after < call.began and call.ended <= before]
    return sorted(calls, key=lambda call: call.began)


def widths_of(layer: nn.Module) -> tuple[int, int]:
    """Return how many features a plain layer reads and writes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels, layer.out_channels


def affine_at(model: nn.Module, path: str) -> tuple[Tensor, Tensor] | None:
    """Return s and t of a per-feature module or of a parameter that scales; None of others."""
    owner, _, name = path.rpartition(".")
    scale = model.get_submodule(owner)._parameters.get(name)
    return scale_and_shift(model.get_submodule(path)) if scale is None else _scaling(scale)


def _scaling(scale: Tensor) -> tuple[Tensor, Tensor]:
    features = scale.detach().flatten()
    return features, torch.zeros_like(features)


def scale_and_shift(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return s and t (each (features,)) if the module computes s * x + t in evaluation mode.

    Known are timm's LayerScale and batch normalization with running statistics, unless an
    activation is part of it.
    """
    if type(module).__name__ in ("LayerScale", "LayerScale2d"):
        return _scaling(module.get_parameter("gamma"))
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return None
    for inner in module.children():
        if not isinstance(inner, nn.Identity | nn.Dropout):
            return None
    if module.running_mean is None or module.running_var is None:
        return None
    scale = (module.running_var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach()
    shift = -module.running_mean * scale
    return scale, shift + module.bias.detach() if module.affine else shift
