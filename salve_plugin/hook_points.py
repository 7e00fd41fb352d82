"""Hook points with TransformerLens' signatures and meaning, for when it is not installed."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from salve_plugin.errors import InputError
from salve_plugin.passes import Pass, open_passes
from salve_plugin.taps import REGISTERING, Replace, watched

Direction = Literal["fwd", "bwd", "both"]
HookFunction = Callable[..., Any]
"""Called as `function(tensor, hook=hook_point)`; a tensor that it returns takes its place."""


@dataclass(frozen=True, eq=False)
class HookHandle:
    """One function on one hook point: how to remove it, and whether `reset_hooks` may.

    Attributes:
        hook: its `remove()` takes the function away.
        is_permanent: whether `reset_hooks` leaves it.
        level: of the caller's choice; `reset_hooks` can be limited to one.
        function: what is called.
        owner: the pass in which alone it acts; None for a function that is everybody's.
    """

    hook: RemovableHandle
    is_permanent: bool
    level: int | None
    function: HookFunction
    owner: Pass | None

    def acts(self) -> bool:
        """Say whether the function acts in the caller's context."""
        return self.owner is None or self.owner in open_passes()


class HookPoint(nn.Module):
    """The identity, with functions that see or replace what passes through it.

    Attributes:
        name: of the site, set by the hooked model.
        ctx: free space for hook functions; all threads share it.
    """

    def __init__(self) -> None:
        """Make a hook point without functions."""
        super().__init__()
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        # By direction and number of the handle.
        # `RemovableHandle` keeps a weak reference, which an OrderedDict allows and a plain dict
        # does not.
        self._handles: dict[str, OrderedDict[int, HookHandle]] = {
            "fwd": OrderedDict(),
            "bwd": OrderedDict(),
        }

    @property
    def fwd_hooks(self) -> list[HookHandle]:
        """The handles of the functions on activations, in order."""
        return list(self._handles["fwd"].values())

    @property
    def bwd_hooks(self) -> list[HookHandle]:
        """The handles of the functions on gradients, in order."""
        return list(self._handles["bwd"].values())

    def forward(self, activation: Tensor) -> Tensor:
        """Return what the functions that act here make of the activation, of any shape.

        Functions on the gradient are chosen now and stay with this activation's graph: the
        backward pass may run in a thread that no longer knows whose it is.
        """
        # A list of its own: a function may remove itself or others while they run.
        for handle in self._acting("fwd"):
            result = handle.function(activation, hook=self)
            activation = activation if result is None else result
        return watched(activation, [self._on_gradient(handle) for handle in self._acting("bwd")])

    def _on_gradient(self, handle: HookHandle) -> Replace:
        def on_gradient(gradient: Tensor) -> Tensor | None:
            result = handle.function(gradient, hook=self)
            # A tuple is the form of torch's own backward hooks.
            replaced: Tensor | None = result[0] if isinstance(result, tuple) else result
            return replaced

        return on_gradient

    def add_hook(
        self,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
        owner: Pass | None = None,
    ) -> HookHandle:
        """Call `hook(tensor, hook=self)` on every activation ("fwd") or its gradient ("bwd").

        Args:
            hook: returns None, or what takes the place of what it got.
            dir: "fwd" or "bwd".
            is_permanent: whether `reset_hooks` leaves it.
            level: of the caller's choice, for `remove_hooks`.
            prepend: whether it comes before the functions that are there.
            owner: the pass in which alone it acts, which `HookedModel.hooks` sets.

        Raises:
            InputError: if `dir` is neither.
        """
        if dir not in ("fwd", "bwd"):
            raise InputError(f"dir is 'fwd' or 'bwd', not {dir!r}")
        handles = self._handles[dir]
        with REGISTERING:  # torch numbers its handles by a counter that all threads share
            removable = RemovableHandle(handles)
        handle = HookHandle(removable, is_permanent, level, hook, owner)
        handles[removable.id] = handle
        if prepend:
            handles.move_to_end(removable.id, last=False)
        return handle

    def add_perma_hook(self, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Add a function that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self,
        dir: Direction = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the functions of a direction, of one context level or of all.

        Those that belong to a call in another thread stay.

        Args:
            dir: "fwd", "bwd" or "both".
            including_permanent: whether permanent ones go, too.
            level: only those added with this level; None for all.
        """
        for handle in self._acting(dir):
            if handle.is_permanent and not including_permanent:
                continue
            if level is None or handle.level == level:
                handle.hook.remove()

    def has_hooks(self, dir: Direction = "both") -> bool:
        """Say whether there is a function in that direction that acts in the caller's context."""
        idle = not self._handles["fwd"] and not self._handles["bwd"]  # asked in every forward pass
        return not idle and bool(self._acting(dir))

    def _acting(self, dir: Direction) -> list[HookHandle]:
        """Return the handles of a direction that act in the caller's context, in order."""
        forward = self.fwd_hooks if dir != "bwd" else []
        backward = self.bwd_hooks if dir != "fwd" else []
        return [handle for handle in (*forward, *backward) if handle.acts()]

    def clear_context(self) -> None:
        """Empty `ctx`."""
        self.ctx = {}

    def layer(self) -> int:
        """Return the block's number: 3 for `blocks.3.hook_resid_post`.

        Raises:
            InputError: if the hook point belongs to no block.
        """
        parts = (self.name or "").split(".")
        if len(parts) < 2 or not parts[1].isdigit():
            raise InputError(f"hook point '{self.name}' belongs to no numbered block")
        return int(parts[1])
