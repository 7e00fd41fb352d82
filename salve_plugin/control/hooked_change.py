"""An edit's change made by hooks instead of weights: what the edited weights are compared with."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.recipe import Recipe
from salve_plugin.control.rows import Rows, index_of
from salve_plugin.control.targets import Target
from salve_plugin.hooks import tapped
from salve_plugin.site import Site


@contextmanager
def changed_by_hooks(model: nn.Module, edit: Recipe, site: Site) -> Iterator[None]:
    """Make the edit's change by hooks: of the site, or of what some outputs of its readers see."""
    operator, axis = edit.operator, site.channel_axis
    if isinstance(operator, LowRankUpdate):
        with _layer_changed(model, edit.targets[0], _update(edit, operator)):
            yield
        return
    with seen_by_edit(model, edit, site, lambda x: operator.activation(x, axis)):
        yield


@contextmanager
def seen_by_edit(
    model: nn.Module, edit: Recipe, site: Site, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Change a site for those who see an edit there: all, or some outputs of its readers."""
    if edit.rows is None and all(target.outputs is None for target in edit.targets):
        with tapped(model, site, change):
            yield
        return
    with _rows_changed(model, edit, site, change):
        yield


@contextmanager
def _rows_changed(
    model: nn.Module, edit: Recipe, site: Site, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let only the edit's outputs of its readers see the changed site."""
    handles = []
    sliced = [target for target in edit.targets if target.outputs is not None]
    layers = dict.fromkeys(site.readers, edit.rows)  # tied ones too, which have no target
    layers |= {target.weight.rpartition(".")[0]: target.rows(edit.rows) for target in sliced}
    for path, rows in layers.items():
        layer = model.get_submodule(path)

        # The rows are bound as a default: a closure would see those of the last layer of the loop.
        def mixed(
            module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor,
            rows: Rows = rows,
        ) -> Tensor:  # fmt: skip
            # `forward` and no call, which would run this hook again without end.
            seen = module.forward(change(_first(inputs, keywords)))
            axis = 1 if isinstance(module, nn.Conv2d) else output.ndim - 1
            own = list(range(output.shape[axis]) if rows is None else rows)
            at = torch.tensor(own, device=output.device)
            return output.index_copy(axis, at, seen.index_select(axis, at))

        handles.append(layer.register_forward_hook(mixed, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    """Return a layer's input, however it is given."""
    tensor: Tensor = inputs[0] if inputs else next(iter(keywords.values()))
    return tensor


def _update(edit: Recipe, operator: LowRankUpdate) -> tuple[Tensor, Tensor | None, Rows]:
    matrix = operator.left.double() @ operator.right.double().T
    return matrix, operator.shift, edit.targets[0].rows(edit.rows)


@contextmanager
def _layer_changed(
    model: nn.Module, target: Target, update: tuple[Tensor, Tensor | None, Rows]
) -> Iterator[None]:
    """Add what an update adds to a layer's output, computed from its input."""
    matrix, shift, rows = update
    layer = model.get_submodule(target.weight.rpartition(".")[0])
    weight = layer.get_parameter("weight")
    change = torch.zeros_like(weight)
    index = index_of(rows)
    change[index] = matrix.reshape(-1, *weight.shape[1:]).to(weight)
    # A layer of its kind with the change for its weight: it pads and strides as this one does.
    twin = deepcopy(layer)
    twin.get_parameter("weight").copy_(change)
    if twin._parameters.get("bias") is not None:
        twin.get_parameter("bias").zero_()
        if shift is not None:
            twin.get_parameter("bias")[index] = shift.to(weight)

    def added(
        module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor
    ) -> Tensor:
        result: Tensor = output + twin.forward(*inputs, **keywords)
        return result

    handle = layer.register_forward_hook(added, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
