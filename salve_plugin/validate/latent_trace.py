"""One forward pass for an attribution: eval mode, inputs as the model takes them, the grid seen."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.images import as_input, refused_in_words
from salve_plugin.modes import evaluating_within
from salve_plugin.validate.grids import grid_of_call, watching_grids
from salve_plugin.validate.layout import Tokens
from salve_plugin.validate.module_sides import ModuleSide
from salve_plugin.validate.tracing import GraphSlice, traced


@dataclass(frozen=True)
class Trace:
    """A forward pass that was run for an attribution.

    Attributes:
        graph: from the layer to the site.
        layer: which activation is explained.
        tokens: says how the layer is laid out in this pass; refuses a grid that is not certain.
        run: runs the same pass again.
        device_ids: order of the devices, if there are several.
    """

    graph: GraphSlice
    layer: ModuleSide
    tokens: Callable[[], Tokens]
    run: Callable[[], None]
    device_ids: Sequence[int] | None


@contextmanager
def tracing(
    forward_func: Callable[..., Any],
    layer: ModuleSide,
    site: ModuleSide,
    arguments: tuple[object, ...],
    device_ids: Sequence[int] | None,
    *,
    tokens: Tokens,
    grid_is_given: bool,
) -> Iterator[Trace]:
    """Run the model in eval mode and keep the graph for the length of the context.

    Args:
        forward_func: the model or a function that runs it.
        layer: where the graph begins.
        site: where it ends.
        arguments: of the forward pass, from `arguments_of`.
        device_ids: order of the devices; by default that of DataParallel.
        tokens: the layer's layout as far as it is known.
        grid_is_given: see `grid_of_call`.

    Raises:
        InputError: if the model does not take the inputs.
        AttributionError: as `traced`, or if the layer is in train mode.
        HookNotFiredError: as `traced`.
    """
    device_ids = device_ids or getattr(forward_func, "device_ids", None)
    with ExitStack() as stack:
        models = stack.enter_context(evaluating_within(forward_func))
        grids: set[tuple[int, int]] = set()

        def run() -> None:
            _check_eval_mode(forward_func, layer[0])
            images = arguments[0] if arguments else None
            # Run again for a class's gradient, the pass sees the same grids: they are a set.
            with watching_grids(models) as seen, refused_in_words(forward_func, images, "inputs"):
                forward_func(*arguments)
            grids.update(seen)

        graph = stack.enter_context(traced(run, layer, site, device_ids))

        def layout() -> Tokens:
            length = graph.layer[0].shape[1]
            return grid_of_call(tokens, length, arguments, grids, given=grid_is_given)

        yield Trace(graph, layer, layout, run, device_ids)


def one_module(layer: object) -> nn.Module:
    """Return the layer, which Captum's base class would let be a list."""
    if not isinstance(layer, nn.Module):
        raise InputError(f"layer must be one module, got {type(layer).__name__}; loop over several")
    return layer


def arguments_of(forward_func: object, inputs: object, additional: object) -> tuple[object, ...]:
    """Return what the forward pass gets: tensors of its own that share the caller's memory.

    So `requires_grad` may be set on them; and those made in inference mode, which autograd
    refuses, are copied. If a model is run, inputs are cast and moved as its parameters are.
    """
    # A bound method of a model stands for the model.
    owner = getattr(forward_func, "__self__", forward_func)

    def fitting(value: object) -> object:
        if isinstance(owner, nn.Module) and isinstance(value, Tensor) and value.is_floating_point():
            return as_input(owner, value)
        return value

    def detached(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() else value.detach()

    def as_tuple(values: object) -> tuple[object, ...]:
        return tuple(values) if isinstance(values, (tuple, list)) else (values,)

    arguments = tuple(map(fitting, as_tuple(inputs))) + (
        () if additional is None else as_tuple(additional)
    )
    return tuple(map(detached, arguments))


def _check_eval_mode(forward_func: object, layer: nn.Module) -> None:
    """Refuse a forward pass in train mode, where the model that a function runs was not found."""
    if layer.training and not isinstance(forward_func, nn.Module):
        raise AttributionError(
            f"{type(layer).__name__} is in train mode, and forward_func does not show whose "
            "module it is; put the model into eval mode first, or pass it itself as forward_func"
        )
