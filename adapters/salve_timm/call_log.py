"""What one forward pass does: which modules ran, when, on which tensors."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

ValueId = tuple[int, int]
"""Names one value: which tensor object, and how many in-place operations it had seen."""


@dataclass
class Call:
    """One module's part in the forward pass.

    Attributes:
        path: the module's path in the model.
        module: the module.
        times: how often it ran; the other fields describe the latest run.
        began: when it was called, on a clock that all calls share.
        ended: when it returned.
        source: id of its first positional argument, None if that is no tensor.
        source_shape: shape of that argument.
        result: id of its output, or of its first output, None if that is no tensor.
        result_shape: shape of that output.
        result_dtype: type of that output.
        constant: how many of the leading rows of a (batch, row, feature) output no image changes: a
            class token and registers, before they have seen any patch.
    """

    path: str
    module: nn.Module
    times: int = 0
    began: int = 0
    ended: int = 0
    source: ValueId | None = None
    source_shape: tuple[int, ...] = ()
    result: ValueId | None = None
    result_shape: tuple[int, ...] = ()
    result_dtype: torch.dtype | None = None
    constant: int = 0


@dataclass(frozen=True)
class CallLog:
    """What one forward pass called.

    Attributes:
        calls: by path, only modules that ran.
        output: what the model returned.
        features: id of what `forward_features` returned, None unless that is one tensor.
        features_shape: shape of it.
        inputs: copies of the first argument of the modules that were asked for.
    """

    calls: dict[str, Call]
    output: Any
    features: ValueId | None
    features_shape: tuple[int, ...]
    inputs: dict[str, Tensor]

    def once(self, path: str) -> Call | None:
        """Return the module's call if it ran exactly once."""
        call = self.calls.get(path)
        return call if call is not None and call.times == 1 else None


class _ValueIds:
    """Gives every tensor object a number for as long as it lives."""

    # Not id(): a tensor that is freed in the middle of the pass hands its address to the next one.

    def __init__(self) -> None:
        self._numbers = WeakIdKeyDictionary()
        self._next = count()

    def of(self, value: Any) -> tuple[ValueId | None, tuple[int, ...]]:
        """Return the value's id and shape; (None, ()) for anything but a tensor."""
        if not isinstance(value, Tensor):
            return None, ()
        if value not in self._numbers:
            self._numbers[value] = next(self._next)
        # Torch counts what is done in place: after an in-place ReLU it is another value.
        return (self._numbers[value], value._version), tuple(value.shape)


def log_calls(model: nn.Module, probe: Tensor, keep: Collection[str] = ()) -> CallLog:
    """Run the model once and record its calls.

    Args:
        model: in `quiet`.
        probe: the batch (images, channels, height, width).
        keep: paths of modules whose input is wanted.
    """
    ids, clock = _ValueIds(), count()
    calls: dict[str, Call] = {}
    inputs: dict[str, Tensor] = {}

    def before(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        call = calls.setdefault(path, Call(path, module))
        call.times += 1
        call.began = next(clock)
        call.source, call.source_shape = ids.of(args[0] if args else None)
        if path in keep and call.source is not None:
            # A copy, since a module further on may work on the tensor in place.
            inputs[path] = args[0].clone()

    def after(path: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        calls[path].result, calls[path].result_shape = ids.of(first)
        calls[path].result_dtype = first.dtype if isinstance(first, Tensor) else None
        calls[path].constant = _constant_rows(first, len(probe))
        calls[path].ended = next(clock)

    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(partial(before, path)).remove)
            stack.callback(module.register_forward_hook(partial(after, path)).remove)
        features = stack.enter_context(_features_of(model))
        output = model(probe)
        features_id, shape = ids.of(features[-1] if features else None)
    # The clock's 0 is the first module's beginning: what ended at 0 never returned.
    ran = {path: call for path, call in calls.items() if call.ended}
    return CallLog(ran, output, features_id, shape, inputs)


def _constant_rows(value: Any, images: int) -> int:
    """Return how many leading rows of a (batch, row, feature) tensor are those of every image."""
    if not isinstance(value, Tensor) or value.is_meta or value.ndim != 3 or len(value) != images:
        return 0
    same = (value == value[:1]).all(2).all(0)
    # Of one image, or of images that are alike, every row is the same: that says nothing.
    return 0 if bool(same.all()) else int(same.int().cumprod(0).sum())


@contextmanager
def _features_of(model: nn.Module) -> Iterator[list[Any]]:
    """Collect what `model.forward_features` returns within the context."""
    collected: list[Any] = []
    if not hasattr(model, "forward_features"):
        yield collected
        return
    original: Any = model.forward_features
    instance_method = model.__dict__.get("forward_features")

    def watched(*args: Any, **kwargs: Any) -> Any:
        collected.append(original(*args, **kwargs))
        return collected[-1]

    # On the instance, where it hides the method: the class serves other models too.
    model.__dict__["forward_features"] = watched
    try:
        yield collected
    finally:
        if instance_method is None:
            del model.__dict__["forward_features"]
        else:
            model.__dict__["forward_features"] = instance_method


def spatial_maps(model: nn.Module, probe: Tensor) -> list[tuple[int, int, int]]:
    """Return (channels, height, width) of what `forward_intermediates` yields; [] without it."""
    if not hasattr(model, "forward_intermediates"):
        return []
    intermediates: Any = model.forward_intermediates
    try:
        maps = intermediates(probe, intermediates_only=True)
    except Exception:  # timm's method is best effort in some families
        return []
    return [
        (feature_map.shape[1], feature_map.shape[2], feature_map.shape[3])
        for feature_map in maps
        if isinstance(feature_map, Tensor) and feature_map.ndim == 4
    ]
