"""Passing a module's first input or first output through a function: every hook is made here."""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from salve_plugin import passes
from salve_plugin.errors import HookNotFiredError, InputError
from salve_plugin.site import Side, Site

Replace = Callable[[Tensor], Tensor | None]
"""Gets an activation; a tensor that it returns takes the activation's place."""

SIDE_NAMES = {"in": "input", "out": "output"}

REGISTERING = threading.Lock()
"""Held while a hook is registered: torch counts its handles without a lock."""


@contextmanager
def tapped(model: nn.Module, site: Site, function: Replace) -> Iterator[None]:
    """Pass the site's activation through `function` in every forward pass of the context.

    Only forward passes of this context's own thread (or asyncio task) count: what another one
    computes with the same model is neither seen nor changed.

    Args:
        model: the bare model.
        site: which activation. If several layers read it as their input, all of them get what
            `function` returns, and it is called once.
        function: gets the activation; a tensor that it returns takes the activation's place.

    Raises:
        HookNotFiredError: if the model has no such module any more.
        InputError: in the forward pass, if there is no tensor where the site is.
    """
    # What lies in front of a layer is replaced for each layer that reads it. What lies behind a
    # module is its output, which all who read it get from there.
    by_reader = site.side == "in" and site.module in site.readers
    paths = site.readers if by_reader else (site.module,)
    with tapping([_module(model, site, path) for path in paths], site.side, function):
        yield


@contextmanager
def tapping(modules: Sequence[nn.Module], side: Side, function: Replace) -> Iterator[None]:
    """Pass what the modules have in common, their first input or output, through `function`.

    The first input is the first positional argument or, in a call by keywords, the one that comes
    first in the signature of `forward`. Of a tuple or list, named or nested, it is the first
    element; the rest, and the type, stay.

    Args:
        modules: one, or several that read one tensor; then `function` is called once for it.
        side: "in" or "out".
        function: see `tapped`.

    Raises:
        InputError: in the forward pass, if there is no tensor in that place.
    """
    answer = _Answers(function, len(modules))
    with passes.opened() as owner, ExitStack() as stack:
        for number, module in enumerate(modules):
            tap = _Tap(owner, side, answer.to(number))
            # One at a time: if a later one cannot be registered, the stack removes those that are.
            stack.callback(_registered(module, tap).remove)
        yield


def watched(activation: Tensor, functions: Sequence[Replace]) -> Tensor:
    """Return the activation with its gradient passed through the functions, in order.

    They run in whatever thread autograd uses, for the graph of this activation only. Where it
    requires no gradient, there is nothing to watch.

    Args:
        activation: of any shape.
        functions: get the gradient, of the same shape; a tensor that one returns takes its place.
    """
    if not functions or not activation.requires_grad:
        return activation
    # A node of its own, so that no function stays on a leaf that belongs to the caller.
    activation = activation.view_as(activation)
    for function in functions:
        activation.register_hook(function)  # type: ignore[no-untyped-call] # torch leaves it untyped
    return activation


@contextmanager
def reading(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Keep the sites' activations of the latest forward pass of this context, by site name.

    The tensors are copies still attached to the graph, so a later in-place operation of the model
    cannot change them.

    Raises:
        HookNotFiredError: at the end of the context, if a site was never computed.
    """
    activations: dict[str, Tensor] = {}

    def keep_as(name: str) -> Replace:
        def keep(activation: Tensor) -> None:
            activations[name] = activation.clone()

        return keep

    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(tapped(model, site, keep_as(site.name)))
        yield activations
    check_fired([site.name for site in sites], activations)


def check_fired(wanted: Sequence[str], fired: Mapping[str, object]) -> None:
    """Refuse a forward pass that did not compute all that was asked for.

    Raises:
        HookNotFiredError: naming what is missing.
    """
    silent = [name for name in wanted if name not in fired]
    if silent:
        raise HookNotFiredError(
            f"the forward pass never computed {silent}; was the classifier reset or the module "
            "replaced after attach()? Then attach the model again. (Only forward passes in the "
            "thread that asks are seen.)"
        )


def _module(model: nn.Module, site: Site, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise HookNotFiredError(
            f"{type(model).__name__} has no module '{path}' any more, where site '{site.name}' "
            "was found; attach the model again"
        ) from None


class _Tap:
    """A hook of a module that acts in the passes of its owner only."""

    def __init__(self, owner: passes.Pass, side: Side, function: Replace) -> None:
        self.owner = owner
        self.side = side
        self.function = function

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # torch leaves the keywords out if another thread removes its hook just before its turn in
        # this thread; such a hook is not ours.
        if kwargs is None or not self._concerns(module):
            return None
        if args:
            # torch takes None of a hook for "unchanged"; anything else replaces the inputs.
            result = self._swapped(module, args)
            return None if result is None else (result, kwargs)
        if not kwargs:
            raise InputError(f"{_named(module)} is called without any input; choose another site")
        name = _first_keyword(module, kwargs)
        result = self._swapped(module, kwargs[name])
        return None if result is None else (args, {**kwargs, name: result})

    def after(self, module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return self._swapped(module, output) if self._concerns(module) else None

    def _swapped(self, module: nn.Module, values: Any) -> Any:
        """Return `values` with its first tensor replaced, or None if it stays."""
        if isinstance(values, Tensor):
            # A replica's thread has no context of its own; what the function does there, such as
            # another forward pass, is done for the owner.
            with passes.inside(passes.open_passes() or self.owner.line):
                return self.function(values)
        if not isinstance(values, (tuple, list)) or not values:
            kind = type(values).__name__
            raise InputError(
                f"the first {SIDE_NAMES[self.side]} of {_named(module)} is no tensor but {kind}; "
                "choose another site"
            )
        first = self._swapped(module, values[0])
        if first is None:
            return None
        elements = (first, *values[1:])
        make = getattr(type(values), "_make", type(values))  # a named tuple takes its fields apart
        return make(elements)

    def _concerns(self, module: nn.Module) -> bool:
        """Say whether this call of the module belongs to the owner."""
        if self.owner in passes.open_passes():
            return True
        if not passes.lent(module):
            return False
        # Lent without saying to whom: if all taps on the module come of one outermost pass, it can
        # only be that one.
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        taps = [tap for hook in hooks if isinstance(tap := getattr(hook, "__self__", None), _Tap)]
        if len({tap.owner.line[0] for tap in taps}) > 1:
            raise InputError(
                f"two threads read or replace activations of {_named(module)} at once, and it "
                "runs in a third (DataParallel, or a checkpoint's second run), which cannot tell "
                "whose pass it belongs to; run one after the other"
            )
        return True


class _Answers:
    """Several readers of one tensor, all of whom get the answer of a single call."""

    def __init__(self, function: Replace, readers: int) -> None:
        self._function = function
        self._readers = readers
        # By thread, since each replica of a DataParallel model has readers of its own.
        self._latest: dict[int, tuple[Tensor, Tensor | None, set[int]]] = {}

    def to(self, number: int) -> Replace:
        """Return the function for one reader."""
        if self._readers == 1:
            return self._function
        return lambda activation: self._answer(number, activation)

    def _answer(self, number: int, activation: Tensor) -> Tensor | None:
        thread = threading.get_ident()
        latest = self._latest.pop(thread, None)
        # A reader that asks again for one tensor asks in another pass.
        # By identity, which is safe while the tensor itself is kept: no other one can get its
        # address.
        if latest is None or latest[0] is not activation or number in latest[2]:
            latest = (activation, self._function(activation), set())
        latest[2].add(number)
        if len(latest[2]) < self._readers:  # else the pass is over, and nothing is kept
            self._latest[thread] = latest
        return latest[1]


def _registered(module: nn.Module, tap: _Tap) -> RemovableHandle:
    with REGISTERING:
        if tap.side == "in":
            return module.register_forward_pre_hook(tap.before, with_kwargs=True)
        return module.register_forward_hook(tap.after)


def _first_keyword(module: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """Return the keyword that comes first in the signature; of unknown ones, in the call."""
    known = inspect.signature(module.forward).parameters
    return next((name for name in known if name in kwargs), next(iter(kwargs)))


def _named(module: nn.Module) -> str:
    return type(module).__name__
