"""Eval mode for a while, after which a model is as it was before."""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class _EvalSpan:
    """One context in which a model is in eval mode, and what to put back at its end.

    Besides the training flags that is every buffer, since some models write to theirs in eval
    mode, too; every dict that a module keeps, such as LeViT's cache of attention biases; and the
    parameters' gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self.modes = [(module, module.training) for module in modules]
        self.buffers = [
            (module, name, buffer, buffer.detach().clone(), _version(buffer))
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        # torch's own dicts (parameters, hooks, submodules) have names with an underscore.
        self.caches = [
            (module, name, cache, dict(cache))
            for module in modules
            for name, cache in vars(module).items()
            if isinstance(cache, dict) and not name.startswith("_")
        ]

    def begin(self) -> None:
        """Set the flags; not by `eval()`, which some modules override with side effects."""
        for module, _ in self.modes:
            module.training = False
        for parameter, _, _ in self.parameters:
            parameter.grad = None  # a backward pass would add to it in place
        for _, _, cache, before in self.caches:
            # What a pass in inference mode has left cannot take part in a backward pass.
            for key, value in before.items():
                if isinstance(value, Tensor) and value.is_inference():
                    cache.pop(key, None)

    def take_over(self, earlier: "_EvalSpan") -> None:
        """Put back what an earlier span would have."""
        self.__dict__.update(vars(earlier))

    def end(self) -> None:
        """Put everything back; what was not touched is not written to."""
        for module, training in self.modes:
            module.training = training
        for parameter, wanted, gradient in self.parameters:
            if parameter.requires_grad != wanted:  # one made in inference mode cannot be asked
                parameter.requires_grad_(wanted)
            parameter.grad = gradient
        for module, name, buffer, value, version in self.buffers:
            # A pass may have written to the buffer, or put another tensor in its place: both are
            # undone.
            if name in module._buffers:
                module._buffers[name] = buffer
            # Writing the same values would still break a backward pass that needs the tensor. Those
            # made in inference mode count nothing, and may be written to there only.
            if version is None or buffer._version != version:
                with torch.inference_mode(version is None), torch.no_grad():
                    buffer.copy_(value)
        for module, name, cache, before in self.caches:
            if cache.keys() != before.keys() or any(cache[k] is not before[k] for k in before):
                # In place, as others may hold the same dict.
                cache.clear()
                cache.update(before)
            # A pass may also have bound the name to another dict.
            setattr(module, name, cache)


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to; None if torch does not count."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the tensors' own types within, whatever autocast region is around."""
    with ExitStack() as stack:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        # Autocast has a switch for each kind of device, and both may be on at once.
        for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


_lock = threading.Lock()
_spans: WeakKeyDictionary[nn.Module, list[_EvalSpan]] = WeakKeyDictionary()


@contextmanager
def evaluating(model: nn.Module, *, keep_autocast: bool = False) -> Iterator[None]:
    """Put every module into eval mode, and leave the model as it was found, on error too.

    Afterwards each module has its own mode again, buffers and gradients have their values, and
    caches that the passes filled are as before. An autocast region around the context does not
    act within, unless activations themselves are wanted as they are there. If several threads do
    so with one model, it stays in eval mode until the last is through.
    """
    with _lock:
        # Within the lock, so that the order of the list is the order in which the states were
        # taken, and nobody takes the state between another's look at it and change of it.
        span = _EvalSpan(model)
        spans = _spans.setdefault(model, [])
        spans.append(span)
        try:
            span.begin()
        except BaseException:
            span.end()
            spans.remove(span)
            raise
    try:
        with nullcontext() if keep_autocast else without_autocast():
            yield
    finally:
        with _lock:
            later = spans.index(span) + 1
            if later < len(spans):
                # Another thread has found eval mode and would put that back: it takes over.
                spans[later].take_over(span)
            else:
                span.end()
            spans.remove(span)


@contextmanager
def evaluating_within(function: Callable[..., Any]) -> Iterator[list[nn.Module]]:
    """Put the models that a function runs into eval mode, as `evaluating` does; yield them.

    They are the function itself if it is a module, else those that it names: what it is bound to
    and that one's attributes, what it closes over, the globals in its code; and what functions
    among those name, in turn.
    """
    # Bounded in depth, since what functions and objects name may run in circles.
    models = {id(model): model for model in _models_of(function, depth=3)}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(evaluating(model))
        yield list(models.values())


def _models_of(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth:
        for inner in _named_in(value):
            yield from _models_of(inner, depth - 1)


def _named_in(value: Any) -> list[Any]:
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.isfunction(value):
        names = inspect.getclosurevars(value)
        return [*names.nonlocals.values(), *names.globals.values()]
    if (owner := getattr(value, "__self__", None)) is not None and not inspect.ismodule(owner):
        return [owner, *getattr(owner, "__dict__", {}).values(), getattr(value, "__func__", None)]
    if callable(value) and not inspect.isclass(value):  # an object with __call__
        return list(getattr(value, "__dict__", {}).values())
    return []
