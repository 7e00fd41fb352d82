"""Points of a forward pass that a site names."""

from dataclasses import dataclass

from torch import nn

from salve_plugin.site import Side, Site
from salve_timm.call_log import CallLog, ValueId
from salve_timm.layout import Arrangement, Layouts


@dataclass(frozen=True)
class Point:
    """A site, the moment at which the forward pass computes it, and the value that it computes."""

    at: int
    site: Site
    value: ValueId | None


def point(
    log: CallLog,
    layouts: Layouts,
    name: str,
    path: str,
    side: Side,
    readers: tuple[str, ...] = (),
    writers: tuple[str, ...] = (),
    *,
    pooled: bool = False,
) -> Point | None:
    """Return the named point, None unless the module ran once there with positions.

    Args:
        log: the forward pass.
        layouts: of the model.
        name: of the hook point.
        path: of the module.
        side: whether its input or its output is meant.
        readers: paths of the layers that read it.
        writers: paths of the layers that write it.
        pooled: whether an activation without positions, (batch, width), is welcome, too.
    """
    call = log.once(path)
    if call is None:
        return None
    shape = call.source_shape if side == "in" else call.result_shape
    arrangement = layouts.read(shape, features_last=_features_last(call.module))
    if pooled and len(shape) == 2 and shape[0] == layouts.images:
        arrangement = Arrangement("pooled", shape[1])
    if arrangement is None:
        return None
    site = Site(
        name, path, side, arrangement.layout, arrangement.width, arrangement.prefix_tokens,
        arrangement.grid, readers, writers,
    )  # fmt: skip
    if side == "in":
        return Point(call.began, site, call.source)
    return Point(call.ended, site, call.result)


def _features_last(module: nn.Module) -> bool | None:
    """Say on which side of a map the module keeps the features, None if it does not tell."""
    # By name too: timm's LayerNorm2d extends LayerNorm and has its features on axis 1.
    if isinstance(module, nn.Linear) or (
        isinstance(module, nn.LayerNorm) and type(module).__name__ == "LayerNorm"
    ):
        return True
    return False if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)) else None
