"""Hook points inside a block, under TransformerLens' names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from salve_plugin.site import Side, Site
from salve_timm.call_log import Call, CallLog
from salve_timm.heads import is_linear
from salve_timm.layout import Layouts
from salve_timm.points import Point, point

_INNER = re.compile(r"\.(?:blocks\.)?(\d+)")
_MLPS = (("norm2", "mlp"), ("norm2", "mlp_channels"), ("norm", "mlp"))


def branch_points(log: CallLog, layouts: Layouts, name: str, path: str) -> list[Point]:
    """Return the points inside a block, or inside the blocks of a stage: `{name}.{index}.`...

    Pre-norm branches only, x + f(norm(x)), where f is attention or an MLP over features: anything
    else (post-norm, parallel branches, token mixing) has only its residual stream, since a name
    that means something else there would mislead.

    Args:
        log: the forward pass.
        layouts: of the model.
        name: of the block or stage, `blocks.3`.
        path: of its module.
    """
    points = list(_points_within(log, layouts, name, path))
    if points:
        return points
    for inner in log.calls:
        match = _INNER.fullmatch(inner, len(path)) if inner.startswith(path) else None
        if match is not None:
            points += _points_within(log, layouts, f"{name}.{match[1]}", inner)
    return points


def _points_within(log: CallLog, layouts: Layouts, name: str, block: str) -> Iterator[Point]:
    add = _Adder(log, layouts)
    attention = list(_attention_points(add, name, block))
    yield from attention
    for norm_name, mlp_name in _MLPS:
        norm, mlp = log.once(f"{block}.{norm_name}"), log.once(f"{block}.{mlp_name}")
        if norm is not None and mlp is not None and mlp.source == norm.result:
            if attention:
                yield from add(f"{name}.hook_resid_mid", norm.path, "in")
            yield from _mlp_points(add, name, norm, mlp)
            return


def _attention_points(add: "_Adder", name: str, block: str) -> Iterator[Point]:
    """Yield the points around the attention that follows `norm1`, behind windows perhaps."""
    # Pre-norm only: the norm must get the very tensor that the block gets.
    norm, attn = add.log.once(f"{block}.norm1"), add.log.once(f"{block}.attn")
    block_call = add.log.once(block)
    if block_call is None or norm is None or attn is None or norm.source != block_call.source:
        return
    # What lies between norm and attention (windows) may move positions, never the features.
    if attn.began < norm.ended or attn.source_shape[-1:] != norm.result_shape[-1:]:
        return
    z = f"{attn.path}.proj"
    readers = _all_reading(norm, [call for call in _linears(add.log, attn) if call.path != z])
    yield from add(f"{name}.ln1.hook_normalized", norm.path, "out", readers)
    yield from _pattern(add, f"{name}.attn.hook_pattern", f"{attn.path}.attn_drop")
    yield from add(f"{name}.attn.hook_z", z, "in", (z,))
    yield from _branch_out(add, f"{name}.hook_attn_out", attn, "1", z)


def _mlp_points(add: "_Adder", name: str, norm: Call, mlp: Call) -> Iterator[Point]:
    layers = _linears(add.log, mlp)
    # Within an adapter's wrapper (PEFT's LoRA) the layer itself is meant, not the bottleneck's.
    own = [call for call in layers if not _is_adapter(add.log, call)]
    last = max(own, key=lambda call: call.ended).path if own else f"{mlp.path}.fc2"
    last = last.removesuffix(".base_layer")  # the wrapper, whose input both of them read
    before = [call for call in layers if not f"{call.path}.".startswith(f"{last}.")]
    readers = _all_reading(norm, before)
    yield from add(f"{name}.ln2.hook_normalized", norm.path, "out", readers)
    yield from add(f"{name}.mlp.hook_post", last, "in", (last,))
    yield from _branch_out(add, f"{name}.hook_mlp_out", mlp, "2", last)


@dataclass(frozen=True)
class _Adder:
    """Makes points of one traced model; linear readers and writers must really be linear."""

    log: CallLog
    layouts: Layouts

    def __call__(
        self,
        name: str,
        path: str,
        side: Side,
        readers: tuple[str, ...] = (),
        writers: tuple[str, ...] = (),
    ) -> list[Point]:
        calls = [self.log.once(reader) for reader in readers]
        readers = tuple(call.path for call in calls if call is not None and is_linear(call.module))
        hook_point = point(self.log, self.layouts, name, path, side, readers, writers)
        return [] if hook_point is None else [hook_point]


def _branch_out(add: _Adder, name: str, branch: Call, number: str, last: str) -> list[Point]:
    """Return the point of what a branch adds to the residual stream.

    That is the output of the drop path or layer scale that runs last, if the block has one for
    this branch, else of the branch. The branch's last linear layer writes it if it is that very
    tensor.
    """
    block = branch.path.rpartition(".")[0]
    kinds = ("drop_path", "ls", "layer_scale")
    names = [f"{block}.{kind}{suffix}" for kind in kinds for suffix in (number, "")]
    behind = [call for path in names if (call := add.log.once(path)) is not None]
    call = max(
        [branch, *(call for call in behind if call.began > branch.ended)],
        key=lambda call: call.ended,
    )
    parameters = dict(add.log.calls[block].module.named_parameters(recurse=False))
    if call is branch and parameters.keys() & {f"gamma{number}", f"gamma_{number}", "gamma"}:
        return []  # scaled by a parameter on its way: no module returns what is added
    writer = add.log.once(last)
    certain = writer is not None and writer.result == call.result and is_linear(writer.module)
    return add(name, call.path, "out", (), (last,) if certain else ())


def _pattern(add: _Adder, name: str, path: str) -> list[Point]:
    """Return the attention pattern (batch, heads, query, key) if it is really computed.

    Fused attention never calls `attn_drop`; with `attn.fused_attn = False` it does.
    """
    call = add.log.once(path)
    if call is None or len(call.result_shape) != 4:
        return []
    if call.result_shape[0] != add.layouts.images:
        return []  # one for each window
    site = Site(name, path, "out", "nchw", call.result_shape[1])
    return [Point(call.ended, site, call.result)]


def _linears(log: CallLog, parent: Call) -> list[Call]:
    return [
        call
        for path, call in log.calls.items()
        if path.startswith(f"{parent.path}.") and is_linear(call.module)
    ]


def _is_adapter(log: CallLog, call: Call) -> bool:
    """Say whether the layer stands beside a `base_layer` in a wrapper of it."""
    parts = call.path.split(".")
    wrappers = (".".join(parts[:length]) for length in range(1, len(parts)))
    return any(
        f"{wrapper}.base_layer" in log.calls
        and not f"{call.path}.".startswith(f"{wrapper}.base_layer.")
        for wrapper in wrappers
    )


def _all_reading(norm: Call, layers: list[Call]) -> tuple[str, ...]:
    """Return the layers if every one of them reads the norm's output itself, else nothing.

    A layer that reads a slice of it (the query of class attention) is a reader that no module
    path tells apart, so that the list would be incomplete.
    """
    if any(call.source != norm.result for call in layers):
        return ()
    return tuple(call.path for call in layers)
