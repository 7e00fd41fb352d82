"""Hook points of the body, under TransformerLens' names, from what ran on the probe."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from salve_plugin.site import Side, Site
from salve_timm.heads import is_linear
from salve_timm.layout import Layouts
from salve_timm.trace import Call, Token, Trace

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Point:
    """A site, the moment at which the forward pass computes it, and the value that it computes."""

    at: int
    site: Site
    value: Token | None


def blocks_of(model: nn.Module, seen: Trace, layouts: Layouts) -> list[str]:
    """Return the paths of the model's blocks or stages, in forward order.

    They are a family of modules whose paths differ in numbers only (`blocks.0`, `blocks.1`, ...,
    or `layer1`, `layer2`, ...), that ran once each, one on the work of another, and hold most of
    the body's parameters. Of nested families with about as many, the outermost is taken. A
    model without such a family (parallel branches) has no blocks.
    """
    families: dict[str, list[Call]] = {}
    body = 0
    for path in seen.calls:
        call = seen.once(path)
        if call is None or layouts.read(call.result_shape) is None:
            continue
        if _positions(call) > 1:
            body += sum(each.numel() for each in call.module.parameters(recurse=False))
        if _DIGITS.search(path.rpartition(".")[2]):
            families.setdefault(_DIGITS.sub("#", path), []).append(call)
    sized = [
        (sum(_parameters(call) for call in calls), -name.count("."), calls)
        for name, calls in families.items()
        if len(calls) > 1
        and max(map(_positions, calls)) > 1
        and not all(is_linear(call.module) for call in calls)
        and _is_chain(calls, seen)
    ]
    most = max((size for size, _, _ in sized), default=0)
    if not sized or most < body / 2:
        return []
    near = [each for each in sized if each[0] >= 0.95 * most]
    calls = max(near, key=lambda each: (each[1], each[0]))[2]
    return [call.path for call in sorted(calls, key=lambda call: call.began)]


def _is_chain(calls: list[Call], seen: Trace) -> bool:
    """Say whether none read what was there before the one in front of it even began."""
    born: dict[Token | None, int] = {}
    for call in seen.calls.values():
        born[call.result] = min(call.ended, born.get(call.result, call.ended))
    ordered = sorted(calls, key=lambda call: call.began)
    return all(
        after.source is None or born.get(after.source, before.began) >= before.began
        for before, after in pairwise(ordered)
    )


def body_points(model: nn.Module, seen: Trace, layouts: Layouts) -> list[Point]:
    """Return every hook point of the blocks and the final norm, unordered."""
    points: list[Point] = []
    blocks = blocks_of(model, seen, layouts)
    for index, path in enumerate(blocks):
        name = f"blocks.{index}"
        if index == 0:
            points += _point(seen, layouts, f"{name}.hook_resid_pre", path, "in")
        points += _transformer_points(seen, layouts, name, path)
        points += _point(seen, layouts, f"{name}.hook_resid_post", path, "out")
    norm = getattr(model, "norm", None)
    if isinstance(norm, nn.Module) and not isinstance(norm, nn.Identity):
        points += _point(seen, layouts, "ln_final.hook_normalized", "norm", "out")
    return points


def point(
    seen: Trace,
    layouts: Layouts,
    name: str,
    path: str,
    side: Side,
    readers: tuple[str, ...] = (),
    writers: tuple[str, ...] = (),
) -> Point | None:
    """Return the named point, None unless the module ran once there with positions."""
    call = seen.once(path)
    if call is None:
        return None
    shape = call.source_shape if side == "in" else call.result_shape
    found = layouts.read(shape)
    if found is None:
        return None
    site = Site(
        name, path, side, found.layout, found.width, found.prefix_tokens, found.grid,
        readers, writers,
    )  # fmt: skip
    if side == "in":
        return Point(call.began, site, call.source)
    return Point(call.ended, site, call.result)


def _point(
    seen: Trace,
    layouts: Layouts,
    name: str,
    path: str,
    side: Side,
    readers: tuple[str, ...] = (),
    writers: tuple[str, ...] = (),
) -> list[Point]:
    found = point(seen, layouts, name, path, side, readers, writers)
    return [] if found is None else [found]


def _transformer_points(seen: Trace, layouts: Layouts, name: str, block: str) -> Iterator[Point]:
    """Yield the points inside a pre-norm transformer block: x + attn(norm1(x)), x + mlp(norm2(x)).

    Anything else (post-norm, parallel branches, no attention) has only its residual stream: a
    name that means something else there would mislead.
    """
    norm1, attn = seen.once(f"{block}.norm1"), seen.once(f"{block}.attn")
    norm2, mlp = seen.once(f"{block}.norm2"), seen.once(f"{block}.mlp")
    whole = seen.once(block)
    if whole is None or norm1 is None or attn is None or norm1.source != whole.source:
        return
    if attn.source != norm1.result:
        return
    add = _Adder(seen, layouts)
    inner = _linears(seen, attn)
    z = f"{attn.path}.proj"
    readers = _all_reading(norm1, [call for call in inner if call.path != z])
    yield from add(f"{name}.ln1.hook_normalized", norm1.path, "out", readers)
    yield from _pattern(seen, f"{name}.attn.hook_pattern", f"{attn.path}.attn_drop")
    yield from add(f"{name}.attn.hook_z", z, "in", (z,))
    yield from _branch_out(add, f"{name}.hook_attn_out", attn, 1, z)
    if norm2 is None or mlp is None or mlp.source != norm2.result:
        return
    layers = _linears(seen, mlp)
    last = max(layers, key=lambda call: call.ended).path if layers else f"{mlp.path}.fc2"
    readers = _all_reading(norm2, [call for call in layers if call.path != last])
    yield from add(f"{name}.hook_resid_mid", norm2.path, "in")
    yield from add(f"{name}.ln2.hook_normalized", norm2.path, "out", readers)
    yield from add(f"{name}.mlp.hook_post", last, "in", (last,))
    yield from _branch_out(add, f"{name}.hook_mlp_out", mlp, 2, last)


@dataclass(frozen=True)
class _Adder:
    """Makes points of one traced model; linear readers and writers must really be linear."""

    seen: Trace
    layouts: Layouts

    def __call__(
        self,
        name: str,
        path: str,
        side: Side,
        readers: tuple[str, ...] = (),
        writers: tuple[str, ...] = (),
    ) -> list[Point]:
        calls = [self.seen.once(each) for each in readers]
        readers = tuple(call.path for call in calls if call is not None and is_linear(call.module))
        return _point(self.seen, self.layouts, name, path, side, readers, writers)


def _branch_out(add: _Adder, name: str, branch: Call, number: int, last: str) -> list[Point]:
    """Return the point of what a branch adds to the residual stream.

    That is the output of the drop path if the block has one of its own, else of the layer scale,
    else of the branch. The branch's last linear layer writes it only if it is that very tensor.
    """
    block = branch.path.rpartition(".")[0]
    whole = add.seen.calls[block].module
    for path in (f"{block}.drop_path{number}", f"{block}.ls{number}", branch.path):
        call = add.seen.once(path)
        if call is None:
            continue
        if path == branch.path and any(
            isinstance(getattr(whole, f"gamma{sep}{number}", None), nn.Parameter)
            for sep in ("", "_")
        ):
            return []  # scaled by a parameter on its way: no module returns what is added
        writer = add.seen.once(last)
        certain = writer is not None and writer.result == call.result and is_linear(writer.module)
        return add(name, path, "out", (), (last,) if certain else ())
    return []


def _pattern(seen: Trace, name: str, path: str) -> list[Point]:
    """Return the attention pattern (batch, heads, query, key) if it is really computed.

    Fused attention never calls `attn_drop`; with `attn.fused_attn = False` it does.
    """
    call = seen.once(path)
    if call is None or len(call.result_shape) != 4:
        return []
    site = Site(name, path, "out", "nchw", call.result_shape[1])
    return [Point(call.ended, site, call.result)]


def _linears(seen: Trace, parent: Call) -> list[Call]:
    return [
        call
        for path, call in seen.calls.items()
        if path.startswith(f"{parent.path}.") and is_linear(call.module)
    ]


def _all_reading(norm: Call, layers: list[Call]) -> tuple[str, ...]:
    """Return the layers if every one of them reads the norm's output itself, else nothing.

    A layer that reads a slice of it (the query of class attention) is a reader that no module
    path tells apart, so that the list would be incomplete.
    """
    if any(call.source != norm.result for call in layers):
        return ()
    return tuple(call.path for call in layers)


def _positions(call: Call) -> int:
    """Return the number of positions at most: 1 for the 1x1 maps of a convolutional MLP."""
    shape = call.result_shape
    return max(shape[1:-1]) if len(shape) == 3 else min(shape[2:], default=1)


def _parameters(call: Call) -> int:
    return sum(parameter.numel() for parameter in call.module.parameters())
