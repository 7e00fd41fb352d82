"""Blocks or stages of the body and their hook points, from what ran on the probe."""

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from salve_plugin.errors import UnsupportedModelError
from salve_plugin.site import Side
from salve_timm.branches import branch_points
from salve_timm.call_log import Call, CallLog, ValueId
from salve_timm.heads import is_linear
from salve_timm.layout import Layouts
from salve_timm.points import Point, point

_DIGITS = re.compile(r"\d+")


def blocks_of(model: nn.Module, log: CallLog, layouts: Layouts) -> list[str]:
    """Return the paths of the model's blocks or stages, in forward order.

    They are a family of modules whose paths differ in numbers only (`blocks.0`, `blocks.1`, ...,
    or `layer1`, `layer2`, ...), that ran once each, one on the work of another, and hold most of
    the body's parameters. Of nested families with about as many, the outermost is taken. A
    model without such a family (parallel branches) has no blocks.
    """
    families: dict[str, list[Call]] = {}
    body = 0
    for path in log.calls:
        call = log.once(path)
        if call is None or layouts.read(call.result_shape) is None:
            continue
        # The own weights of each module, so that none counts twice, and only where there are
        # positions: a wide classifier is no part of the body.
        if _positions(call) > 1:
            body += sum(weight.numel() for weight in call.module.parameters(recurse=False))
        if _DIGITS.search(path.rpartition(".")[2]):
            families.setdefault(_DIGITS.sub("#", path), []).append(call)
    sized = [
        (sum(_parameters(call) for call in calls), -name.count("."), calls)
        for name, calls in families.items()
        if len(calls) > 1
        and max(map(_positions, calls)) > 1
        and not all(is_linear(call.module) for call in calls)
        and _is_chain(calls, log)
    ]
    most = max((size for size, _, _ in sized), default=0)
    if not sized or most < body / 2:
        return []
    # `stages.#` and `stages.#.blocks.#` hold nearly the same parameters: a stage adds only its
    # downsampling. Within that margin the outer one is meant.
    near = [family for family in sized if family[0] >= 0.95 * most]
    calls = max(near, key=lambda family: (family[1], family[0]))[2]
    return [call.path for call in sorted(calls, key=lambda call: call.began)]


def _is_chain(calls: list[Call], log: CallLog) -> bool:
    """Say whether each works on what the one in front of it made.

    That is: none read what was there before that one even began, and what blocks of tokens return
    goes into other modules, but where it is reshaped on the way. What is only added to the stream
    is no block's output.
    """
    # Several modules may return one tensor (an Identity); it exists since the first of them.
    born: dict[ValueId | None, int] = {}
    for call in log.calls.values():
        born[call.result] = min(call.ended, born.get(call.result, call.ended))
    ordered = sorted(calls, key=lambda call: call.began)
    read = {call.source for call in log.calls.values()}
    tokens = [before for before in ordered[:-1] if len(before.result_shape) == 3]
    if tokens and not any(before.result in read for before in tokens):
        return False
    return all(
        after.source is None or born.get(after.source, before.began) >= before.began
        for before, after in pairwise(ordered)
    )


def body_points(
    model: nn.Module, log: CallLog, layouts: Layouts, named: Sequence[str] | None = None
) -> list[Point]:
    """Return every hook point of the blocks and the final norm, unordered.

    Args:
        model: as it was when it ran.
        log: the forward pass.
        layouts: of the model.
        named: paths of the blocks, if the caller knows them; they need no positions.

    Raises:
        UnsupportedModelError: if a named block has no output that is one activation an image.
    """
    points: list[Point] = []
    blocks = blocks_of(model, log, layouts) if named is None else named
    for index, path in enumerate(blocks):
        name = f"blocks.{index}"
        if index == 0:
            points += _point(log, layouts, f"{name}.hook_resid_pre", path, "in")
        points += branch_points(log, layouts, name, path)
        outputs = _point(log, layouts, f"{name}.hook_resid_post", path, "out", named is not None)
        if named is not None and not outputs:
            raise UnsupportedModelError(_no_block(path, log))
        points += outputs
    norm = getattr(model, "norm", None)
    if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
        points += _point(log, layouts, "ln_final.hook_normalized", "norm", "out")
    return points


def _point(
    log: CallLog, layouts: Layouts, name: str, path: str, side: Side, pooled: bool = False
) -> list[Point]:
    hook_point = point(log, layouts, name, path, side, pooled=pooled)
    return [] if hook_point is None else [hook_point]


def _no_block(path: str, log: CallLog) -> str:
    call = log.calls.get(path)
    times = 0 if call is None else call.times
    ran = (
        f"it ran {times} times"
        if call is None or times != 1
        else (f"its output is {call.result_shape or 'no tensor'}")
    )
    return (
        f"'{path}' cannot be a block: {ran}, and a block runs once and returns (batch, width), "
        "(batch, token, width) or a map of every image; name another module, or leave it out"
    )


def _positions(call: Call) -> int:
    """Return the number of positions at most: 1 for the 1x1 maps of a convolutional MLP."""
    shape = call.result_shape
    return max(shape[1:-1]) if len(shape) == 3 else min(shape[2:], default=1)


def _parameters(call: Call) -> int:
    return sum(parameter.numel() for parameter in call.module.parameters())
