"""What a model with hook points offers, as TransformerLens does, for when it is not installed.

What it adds: functions that are there for the length of a call (`hooks`, `run_with_hooks`,
`run_with_cache`) act in that call only, whatever other threads do with the same model. Functions
that `add_hook` adds are everybody's until they are removed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from salve_plugin.errors import InputError, UnknownSiteError
from salve_plugin.hook_points import Direction, HookFunction
from salve_plugin.passes import opened

NameOrTest = str | Callable[[str], bool]
NamesFilter = None | str | Sequence[str] | Callable[[str], bool]


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

        Args:
            name: of a point, or a test of names.
            hook: called as `hook(tensor, hook=point)`; a tensor that it returns takes its place.
            dir: "fwd" for activations, "bwd" for their gradients.
            is_permanent: whether `reset_hooks` leaves it.
            level: of the caller's choice; `reset_hooks` can be limited to one.
            prepend: whether it comes before the functions that are there.

        Raises:
            UnknownSiteError: if there is no point of that name.
        """
        for point in self._matching(name):
            point.add_hook(hook, dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(
        self, name: NameOrTest, hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> None:
        """Add a function that `reset_hooks` leaves in place; arguments as for `add_hook`.

        Raises:
            UnknownSiteError: if there is no point of that name.
        """
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self,
        clear_contexts: bool = True,
        direction: Direction = "both",
        including_permanent: bool = False,
        level: int | None = None,
    ) -> None:
        """Remove the functions of all points.

        Args:
            clear_contexts: whether to empty the points' `ctx`, too.
            direction: "fwd", "bwd" or "both".
            including_permanent: whether permanent ones go, too.
            level: only those added with this level; None for all.
        """
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

        They act in this context's own thread (or asyncio task) only. Functions on gradients act on
        the graph of each forward pass made here, in whatever thread its backward pass runs.

        Args:
            fwd_hooks: (name or test of names, function) on activations.
            bwd_hooks: the same on gradients.
            reset_hooks_end: whether to remove them at the end of the context. If not, they are
                everybody's from the start, as if `add_hook` had added them.
            clear_contexts: whether to empty the points' `ctx` then.

        Raises:
            UnknownSiteError: if there is no point of a name.
        """
        with opened() as mine, ExitStack() as stack:
            # A function without an owner acts in every thread, as those of `add_hook` do.
            owner = mine if reset_hooks_end else None
            wanted: list[tuple[NameOrTest, HookFunction, Literal["fwd", "bwd"]]] = [
                *((name, function, "fwd") for name, function in fwd_hooks),
                *((name, function, "bwd") for name, function in bwd_hooks),
            ]
            for name, function, dir in wanted:
                for point in self._matching(name):
                    # Removed one by one, since `reset_hooks` would take away what others have added
                    # meanwhile.
                    handle = point.add_hook(function, dir, owner=owner)
                    if reset_hooks_end:
                        stack.callback(handle.hook.remove)
            if reset_hooks_end and clear_contexts:
                for point in self.hook_dict.values():
                    stack.callback(point.clear_context)
            yield self

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
        `reset_hooks_end=False` and call `reset_hooks` after it. Arguments as for `hooks`; all
        others are passed to the model.

        Raises:
            UnknownSiteError: if there is no point of a name.
            HookNotFiredError: if the forward pass did not compute one.
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
            InputError: if `remove_batch_dim` would drop images.
            HookNotFiredError: if the forward pass did not compute one.
        """
        cache: dict[str, Tensor] = {}

        def save(tensor: Tensor, hook: Any, suffix: str = "") -> None:
            if remove_batch_dim and len(tensor) != 1:
                raise InputError(
                    f"remove_batch_dim drops the axis of one image, and '{hook.name}' has "
                    f"{len(tensor)}; run one image, or leave remove_batch_dim out"
                )
            copied = tensor.detach().to(device) if device is not None else tensor.detach()
            # A copy: TransformerLens keeps the tensor itself, which a later in-place ReLU rewrites.
            cache[f"{hook.name}{suffix}"] = (copied[0] if remove_batch_dim else copied).clone()

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
