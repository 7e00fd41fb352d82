"""One forward pass whose graph runs from a layer to a site and holds nothing else."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from salve_plugin.errors import AttributionError, HookNotFiredError
from salve_plugin.taps import Replace, tapping
from salve_plugin.validate.module_sides import ModuleSide, side_name


@dataclass(frozen=True)
class GraphSlice:
    """What a forward pass computed, one tensor per device (one in all without DataParallel).

    Attributes:
        layer: the layer's activation: leaves of the graph.
        site: the site's activation, a copy attached to the graph where it depends on the layer.
    """

    layer: tuple[Tensor, ...]
    site: tuple[Tensor, ...]


@contextmanager
def traced(
    run: Callable[[], object], layer: ModuleSide, site: ModuleSide, device_ids: Sequence[int] | None
) -> Iterator[GraphSlice]:
    """Run `run` and keep the graph between `layer` and `site` for the length of the context.

    No graph is built before the layer, whatever the caller's grad mode. The model gets copies of
    what is kept, so that its in-place operations cannot change it. The hooks are gone when the
    context is entered, and after an error.

    Args:
        run: a forward pass; its result is dropped.
        layer: the activation that becomes the leaf of the graph. For an input it is the tensor
            itself, so that a skip connection around the module counts too.
        site: the activation whose dependence on `layer` is wanted.
        device_ids: the order of devices, if the forward pass runs on several.

    Raises:
        HookNotFiredError: if the forward pass runs the layer or the site not at all.
        AttributionError: if it runs one of them more than once, or in inference mode.
    """
    leaves: dict[torch.device, Tensor] = {}
    values: dict[torch.device, Tensor] = {}
    borrowed: list[Tensor] = []

    def start(activation: Tensor) -> Tensor:
        _check_activation(activation, layer, leaves)
        # The graph starts here; the no_grad around the forward pass restores the mode after it.
        torch.set_grad_enabled(True)
        # An input must stay the tensor that it is: a skip connection around the module holds the
        # same one, and its share of the gradient counts. An output is nobody's yet, so a detached
        # alias of it will do, which leaves the model's own tensor as it was.
        leaf = activation if layer[1] == "in" else activation.detach()
        if not leaf.requires_grad:
            # It may be the caller's image; what is borrowed is given back at the end.
            borrowed.append(leaf.requires_grad_())
        leaves[activation.device] = leaf
        # The model goes on with a copy: autograd refuses in-place operations on a leaf, and the
        # values that the map is weighted by must not change under them.
        return leaf.clone()

    def end(activation: Tensor) -> None:
        _check_activation(activation, site, values)
        values[activation.device] = activation.clone()

    try:
        # The layer's hook first: where both are one activation, the site must see the leaf's copy.
        # In inference mode no graph can be built, whatever the grad mode says.
        with torch.inference_mode(False):
            with torch.no_grad(), _tapping(layer, start), _tapping(site, end):
                run()
            _check_fired(layer, leaves)
            _check_fired(site, values)
            order = _device_order(leaves, device_ids)
            yield GraphSlice(tuple(leaves[d] for d in order), tuple(values[d] for d in order))
    finally:
        for leaf in borrowed:
            leaf.requires_grad_(False)


def pull_back(
    graph: GraphSlice, cotangent: Tensor, grad_kwargs: dict[str, Any], *, several: bool = False
) -> Tensor | None:
    """Return the gradient at the layer for `cotangent`, that at the site; None if independent.

    Only the layer's gradient is computed, no parameter's. In float16 the cotangent is scaled by a
    power of two, which is exact, lest the gradient underflow (0.01 over 56 x 56 positions is
    below the smallest normal number) or overflow. The result is in float32 or wider.

    Args:
        graph: between the layer and the site.
        cotangent: (batch, ...) as the site's activation.
        grad_kwargs: passed to `torch.autograd.grad`.
        several: whether there are several cotangents (cotangents, batch, ...), which are pulled
            back in one go; the result has the same first axis.
    """
    # The site was computed before the layer, or from nothing that the layer made.
    if not all(value.requires_grad for value in graph.site):
        return None
    half = any(tensor.dtype == torch.float16 for tensor in (*graph.site, *graph.layer))
    for scale in _exact_scales(cotangent) if half else (1.0,):
        sizes = [len(value) for value in graph.site]
        cotangents = torch.split(cotangent * scale, sizes, dim=int(several))
        cotangents = tuple(
            part.to(value) for part, value in zip(cotangents, graph.site, strict=True)
        )
        # In half precision another scale may have to be tried on the same graph.
        options = {"allow_unused": True, "retain_graph": half, "is_grads_batched": several}
        options |= grad_kwargs
        gradients = torch.autograd.grad(graph.site, graph.layer, cotangents, **options)
        if any(gradient is None for gradient in gradients):
            return None
        gradient = joined(gradients, axis=int(several))
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
        if gradient.isfinite().all():
            break
    return gradient


def joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Return the parts of a batch as one tensor, on the first part's device."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.to(parts[0].device) for part in parts], axis)


def _exact_scales(cotangent: Tensor) -> tuple[float, ...]:
    """Return powers of two that bring the largest entry to 256, else 1, else 1/256."""
    # The largest first: small gradients are lost without a trace, while one that is too large
    # becomes infinite and is noticed.
    largest = cotangent.abs().max().item()
    unit = 2.0 ** -math.floor(math.log2(largest)) if 0 < largest < math.inf else 1.0
    return unit * 256, unit, unit / 256


def _tapping(module_side: ModuleSide, function: Replace) -> AbstractContextManager[None]:
    module, side = module_side
    return tapping([module], side, function)


def _check_activation(
    activation: object, module_side: ModuleSide, by_device: dict[torch.device, Tensor]
) -> None:
    """Refuse what cannot be differentiated or is not one activation."""
    name = f"the {side_name(module_side)} of {type(module_side[0]).__name__}"
    if not isinstance(activation, Tensor) or not activation.is_floating_point():
        kind = activation.dtype if isinstance(activation, Tensor) else type(activation).__name__
        raise AttributionError(f"{name} is {kind}, not a floating-point tensor; choose another")
    if torch.is_inference_mode_enabled():
        raise AttributionError(
            f"{name} is computed in inference mode, which forward_func turns on itself; "
            "pass the model, or a function without torch.inference_mode"
        )
    if activation.device in by_device:
        raise AttributionError(
            f"{name} is computed more than once in a forward pass, so which one is meant is "
            "ambiguous; choose a module that runs once"
        )


def _check_fired(module_side: ModuleSide, by_device: dict[torch.device, Tensor]) -> None:
    if not by_device:
        raise HookNotFiredError(
            f"the forward pass never computed the {side_name(module_side)} of "
            f"{type(module_side[0]).__name__}; name a module of this very model that its forward "
            "pass runs"
        )


def _device_order(
    by_device: dict[torch.device, Tensor], device_ids: Sequence[int] | None
) -> list[torch.device]:
    """Return the devices in the order in which DataParallel split the batch."""
    if len(by_device) == 1:
        return list(by_device)
    if device_ids is None:
        raise AttributionError(
            f"the model ran on {len(by_device)} devices in an unknown order; pass device_ids, or "
            "the DataParallel model itself as forward_func"
        )
    rank = {index: place for place, index in enumerate(device_ids)}
    return sorted(by_device, key=lambda device: rank[device.index])
