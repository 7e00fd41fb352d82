"""Hook points with TransformerLens' signatures and meaning, for when it is not installed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from salve_plugin.errors import InputError, UnknownSiteError

Direction = Literal["fwd", "bwd", "both"]
HookFunction = Callable[..., Any]
"""Called as `function(tensor, hook=hook_point)`; a tensor that it returns takes its place."""
NameOrTest = str | Callable[[str], bool]
NamesFilter = None | str | Sequence[str] | Callable[[str], bool]


@dataclass(frozen=True)
class HookHandle:
    """One function on one hook point: how to remove it, and whether `reset_hooks` may."""

    hook: RemovableHandle
    is_permanent: bool
    level: int | None


class HookPoint(nn.Module):
    """The identity, with functions that see or replace what passes through it.

    Attributes:
        name: of the site, set by the hooked model.
        ctx: free space for hook functions.
        fwd_hooks: handles of the functions on activations.
        bwd_hooks: handles of the functions on gradients.
    """

    def __init__(self) -> None:
        """Make a hook point without functions."""
        super().__init__()
        self.name: str | None = None
        self.ctx: dict[Any, Any] = {}
        self.fwd_hooks: list[HookHandle] = []
        self.bwd_hooks: list[HookHandle] = []

    def forward(self, activation: Tensor) -> Tensor:
        """Return the activation; torch applies the functions around this call."""
        return activation

    def add_hook(
        self,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> HookHandle:
        """Call `hook(tensor, hook=self)` on every activation ("fwd") or its gradient ("bwd").

        Raises:
            InputError: if `dir` is neither.
        """
        if dir == "fwd":
            handle = self.register_forward_hook(
                lambda _module, _inputs, output: hook(output, hook=self), prepend=prepend
            )
        elif dir == "bwd":

            def on_gradient(_module: nn.Module, _inputs: Any, gradients: Any) -> Any:
                return _as_tuple(hook(gradients[0], hook=self))

            handle = self.register_full_backward_hook(on_gradient, prepend=prepend)
        else:
            raise InputError(f"dir is 'fwd' or 'bwd', not {dir!r}")
        kept = HookHandle(handle, is_permanent, level)
        handles = self.fwd_hooks if dir == "fwd" else self.bwd_hooks
        handles.insert(0 if prepend else len(handles), kept)
        return kept

    def add_perma_hook(self, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd") -> None:
        """Add a function that `reset_hooks` leaves in place."""
        self.add_hook(hook, dir, is_permanent=True)

    def remove_hooks(
        self,
        dir: Direction = "fwd",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the functions of a direction, of one context level or of all."""
        for handles in self._lists(dir):
            for handle in list(handles):
                if handle.is_permanent and not including_permanent:
                    continue
                if level is None or handle.level == level:
                    handle.hook.remove()
                    handles.remove(handle)

    def has_hooks(self, dir: Direction = "both") -> bool:
        """Say whether there is a function in that direction."""
        return any(self._lists(dir))

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

    def _lists(self, dir: Direction) -> list[list[HookHandle]]:
        """Return the handle lists of a direction."""
        return {
            "fwd": [self.fwd_hooks],
            "bwd": [self.bwd_hooks],
            "both": [self.fwd_hooks, self.bwd_hooks],
        }[dir]


class HookedRoot(nn.Module):
    """What TransformerLens' `HookedRootModule` offers on a dict of hook points.

    Attributes:
        hook_dict: the hook points by name, in forward order.
    """

    hook_dict: dict[str, Any]

    def add_hook(
        self,
        name: NameOrTest,
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a function at the named point, or at all whose names pass the test.

        Raises:
            UnknownSiteError: if there is no point of that name.
        """
        for point in self._matching(name):
            point.add_hook(hook, dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(
        self, name: NameOrTest, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> None:
        """Add a function that `reset_hooks` leaves in place."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the functions of all points."""
        for point in self.hook_dict.values():
            point.remove_hooks(direction, including_permanent=including_permanent, level=level)
            if clear_contexts:
                point.clear_context()

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[NameOrTest, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[NameOrTest, HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRoot"]:
        """Keep functions in place within the context; others that were there stay.

        Args:
            fwd_hooks: (name or test of names, function) on activations.
            bwd_hooks: the same on gradients.
            reset_hooks_end: whether to remove them at the end of the context.
            clear_contexts: whether to empty the points' `ctx` then.
        """
        level = getattr(self, "_level", 0) + 1
        self._level = level
        try:
            for name, function in fwd_hooks:
                self.add_hook(name, function, "fwd", level=level)
            for name, function in bwd_hooks:
                self.add_hook(name, function, "bwd", level=level)
            yield self
        finally:
            if reset_hooks_end:
                self.reset_hooks(clear_contexts, level=level)
            self._level = level - 1

    def run_with_hooks(
        self,
        *model_args: Any,
        fwd_hooks: Sequence[tuple[NameOrTest, HookFunction]] = (),
        bwd_hooks: Sequence[tuple[NameOrTest, HookFunction]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """Return the model's output with functions in place for this one call.

        For `bwd_hooks` run the backward pass inside `hooks(...)` instead, or keep them with
        `reset_hooks_end=False` and call `reset_hooks` after it.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*model_args, **model_kwargs)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return the model's output and detached copies of its activations by name.

        Args:
            model_args: passed to the model.
            names_filter: a name, several, or a test of names; all by default.
            device: where to keep the copies; by default where they are computed.
            remove_batch_dim: whether to drop the batch axis of a batch of one.
            incl_bwd: whether to call `backward()` on the output, which must be a scalar, and
                keep gradients as `<name>_grad`.
            reset_hooks_end: as in `hooks`.
            clear_contexts: as in `hooks`.
            model_kwargs: passed to the model.

        Raises:
            UnknownSiteError: if a name does not exist.
            HookNotFiredError: if the forward pass did not compute one.
        """
        cache: dict[str, Tensor] = {}

        def save(tensor: Tensor, hook: Any, suffix: str = "") -> None:
            kept = tensor.detach().to(device) if device is not None else tensor.detach()
            cache[f"{hook.name}{suffix}"] = (kept[0] if remove_batch_dim else kept).clone()

        def save_gradient(tensor: Tensor, hook: Any) -> None:
            save(tensor, hook, "_grad")

        names = self._selected(names_filter)
        with self.hooks(
            [(name, save) for name in names],
            [(name, save_gradient) for name in names] if incl_bwd else [],
            reset_hooks_end,
            clear_contexts,
        ):
            output = self(*model_args, **model_kwargs)
            if incl_bwd:
                output.backward()
        return output, cache

    def _matching(self, name: NameOrTest) -> list[Any]:
        """Return the points of that name, or whose names pass the test."""
        if callable(name):
            return [point for key, point in self.hook_dict.items() if name(key)]
        if name not in self.hook_dict:
            raise UnknownSiteError(f"no hook point '{name}'; choose one of {list(self.hook_dict)}")
        return [self.hook_dict[name]]

    def _selected(self, names_filter: NamesFilter) -> list[str]:
        """Return the names that pass the filter."""
        if names_filter is None:
            return list(self.hook_dict)
        if callable(names_filter):
            return [name for name in self.hook_dict if names_filter(name)]
        wanted = [names_filter] if isinstance(names_filter, str) else list(names_filter)
        return [point.name for name in wanted for point in self._matching(name)]


def _as_tuple(gradient: Any) -> Any:
    """Return a replaced gradient in the form that torch's backward hooks expect."""
    return gradient if gradient is None or isinstance(gradient, tuple) else (gradient,)
