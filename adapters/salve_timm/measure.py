"""Which linear layers read or write an activation, and nothing else: measured by gradients.

A permanent edit of an activation x, x' = x + M x + d, is folded into the layers that read it or
into the one that writes it. That is exact if those layers are all that read it, or all that make
it. What modules ran cannot tell: additions, activations and slices are no modules.

So it is measured. To first order, x' changes a loss by <A, M> + <b, d>, where A = sum of g x^T and
b = sum of g over all positions, g the loss's gradient at x. At the layers' own inputs (or, for a
writer, at its output brought to the site by LayerScale, BatchNorm or a scale of the block's own)
the same A and b must come out. A consumer that was not listed adds a term to the site's side only;
an addition or an activation between writer and site changes x or g. Positions may be rearranged in
between, as windows are. The test is local to each site: one forward and one backward pass serve all
of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salve_plugin.hooks import tapped
from salve_plugin.site import Side, Site
from salve_timm.call_log import CallLog
from salve_timm.points import Point
from salve_timm.wiring import Wiring, affine_at, widths_of, wirings_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Largest difference of the two sides, relative to the sum of the terms' sizes at the site.

Over the families of the tests the sides differ by at most 1e-6 in float32 where nothing is missing,
the rounding of a sum of gradients, and by at least 3e-4 where something is. Half precision, whose
rounding is larger than that, is measured in float32.
"""


def measured(
    model: nn.Module, points: Sequence[Point], log: CallLog, heads: Sequence[Site], probe: Tensor
) -> list[Point]:
    """Return the points with the readers and writers that the probe's gradients confirm.

    On the meta device, and in a model that has no gradients, the points stay as they are.

    Args:
        model: in `quiet`.
        points: of the body, with the readers and writers that structure alone makes certain.
        log: the forward pass on `probe`.
        heads: the sites that the classifier reads; the loss is a random sum of them, since logits
            may not depend on anything in a fresh model.
        probe: the batch; its first image is enough.
    """
    if probe.is_meta:
        return list(points)
    wirings = wirings_of(model, points, log, {path for site in heads for path in site.readers})
    sites = [
        replace(point.site, readers=wiring.readers)
        for point, wiring in zip(points, wirings, strict=True)
    ]
    image = probe[:1].to(torch.promote_types(probe.dtype, torch.float32))
    try:
        with _lent(model):
            rows = _gradients(model, sites, wirings, heads, image)
            tolerance = TOLERANCE[image.dtype]
            return [
                replace(point, site=_confirmed(model, point.site, wiring, rows, tolerance))
                for point, wiring in zip(points, wirings, strict=True)
            ]
    except RuntimeError:  # weights made in inference mode, an operation without a derivative
        return list(points)


@contextmanager
def _lent(model: nn.Module) -> Iterator[None]:
    """Lend the model float32 for half precision, and other values where a tensor is constant.

    Fresh scales and biases are: a branch that ends in zeros hides what it reads, and a scale of
    ones hides itself. What is found must still hold when the model has been trained. A trained
    model in float32 is not touched; in any case the tensors get their own memory back.
    """
    generator = torch.Generator().manual_seed(0)
    originals: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor in {
            id(weight): weight for weight in (*model.parameters(), *model.buffers())
        }.values():
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            data = tensor.data
            value = data.to(torch.promote_types(data.dtype, torch.float32))
            flat = value.flatten()
            # The ends first, which spares most tensors the comparison of every element.
            if bool(flat[0] == flat[-1]) and bool((flat == flat[0]).all()):
                # A constant is scaled by 0.5 to 1.5, which keeps its sign: running variances stay
                # positive. Zeros become as large as a fresh layer's weights, so that nothing
                # vanishes or overflows.
                noise = torch.rand(value.shape, generator=generator).to(value)
                fan_in = value[0].numel() if value.ndim else 1
                value = value * (noise + 0.5) if bool(flat[0]) else (noise - 0.5) * fan_in**-0.5
            if value is not data:
                # By .data, not in place: optimizers go on holding the same parameter, and
                # autograd's count of changes does not move.
                originals.append((tensor, data))
                tensor.data = value
        yield
    finally:
        for tensor, data in originals:
            tensor.data = data


_RowPairs = dict[tuple[str, str], tuple[Tensor, Tensor]]
"""By (side or "site", path or name): values and gradients, each (rows, width)."""


def _gradients(
    model: nn.Module,
    sites: Sequence[Site],
    wirings: Sequence[Wiring],
    heads: Sequence[Site],
    image: Tensor,
) -> _RowPairs:
    """Run the model forward and backward once; return what passed the sites and the layers."""
    taps: dict[tuple[str, str], Site] = {("site", site.name): site for site in sites}
    for wiring in wirings:
        for path in wiring.readers:
            taps["in", path] = _edge(model, path, "in")
        if wiring.writer is not None:
            taps["out", wiring.writer] = _edge(model, wiring.writer, "out")
    activations: dict[tuple[str, str], Tensor] = {}
    head_inputs: dict[str, Tensor] = {}

    def keep(key: tuple[str, str], activation: Tensor) -> Tensor:
        activations[key] = activation.clone()
        return activations[key].clone()  # an in-place operation that follows hits this copy

    def read(name: str, activation: Tensor) -> None:
        head_inputs[name] = activation

    generator = torch.Generator().manual_seed(0)
    # The heads' inputs, not the logits: those may be constant in a fresh model. A random sum, since
    # the plain one is constant behind a layer norm.
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for key, site in taps.items():  # sites first, so that they come before their layers
            stack.enter_context(tapped(model, site, partial(keep, key)))
        for site in heads:
            stack.enter_context(tapped(model, site, partial(read, site.name)))
        # The image requires a gradient, so that there is a graph even where all weights are frozen.
        model(image.detach().clone().requires_grad_())
        loss = sum(
            (x * torch.randn(x.shape, generator=generator).to(x)).sum()
            for x in head_inputs.values()
        )
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return {}
        values = dict(activations)
        gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
    return {
        key: (_rows(taps[key], value), _rows(taps[key], gradient))
        for (key, value), gradient in zip(values.items(), gradients, strict=True)
        if gradient is not None
    }


def _edge(model: nn.Module, path: str, side: Side) -> Site:
    """Return the layer's own input or output as a site; a convolution's features are on axis 1."""
    layer = model.get_submodule(path)
    width = widths_of(layer)[side == "out"]
    return Site(path, path, side, "nchw" if isinstance(layer, nn.Conv2d) else "tokens", width)


def _rows(site: Site, activation: Tensor) -> Float[Tensor, "rows width"]:
    axis = -1 if site.layout == "tokens" else site.channel_axis  # a Linear takes any shape
    return activation.detach().movedim(axis, -1).reshape(-1, site.width).cpu()


def _confirmed(
    model: nn.Module, site: Site, wiring: Wiring, rows: _RowPairs, tolerance: float
) -> Site:
    """Return the site with the readers and writers at which its first-order effect comes out."""
    site = replace(site, readers=(), writers=(), affine=())
    if ("site", site.name) not in rows:
        return site
    value, gradient = rows["site", site.name]
    generator = torch.Generator().manual_seed(0)
    # A is width x width; A v for one random v tells two of them apart with probability one, at
    # the price of a vector.
    direction = torch.randn(site.width, generator=generator, dtype=torch.float64).to(value)
    effect = _effect(value @ direction, gradient)
    # What rounding is relative to: the terms, not their sum, in which they may cancel.
    size = _effect((value @ direction).abs(), gradient.abs()).amax(1)
    if not bool((size > 0).all() and size.isfinite().all()):
        return site

    def agrees(layers_effect: Tensor) -> bool:
        return bool(((layers_effect - effect).abs().amax(1) <= tolerance * size).all())

    # All readers together must account for the site; each alone gives only its own term.
    inputs = [rows[key] for path in wiring.readers if (key := ("in", path)) in rows]
    if len(inputs) == len(wiring.readers) > 0:
        read = torch.stack([_effect(x @ direction, pull) for x, pull in inputs]).sum(0)
        if agrees(read):
            site = replace(site, readers=wiring.readers)
    if wiring.writer is not None and ("out", wiring.writer) in rows:
        output, pull = rows["out", wiring.writer]
        for chain in wiring.chains:
            # x = s y + t at the site, so dL/dx = (dL/dy) / s: the same A and b from the writer's
            # side.
            scale, shift = _composed(model, chain, output)
            if bool((scale != 0).all()) and agrees(
                _effect((output * scale + shift) @ direction, pull / scale)
            ):
                return replace(site, writers=(wiring.writer,), affine=chain)
    return site


def _effect(along: Tensor, gradient: Tensor) -> Float[Tensor, "2 width"]:
    """Return A v and b of the module's docstring, given x v for one random v at every position."""
    return torch.stack([along, torch.ones_like(along)]) @ gradient


def _composed(
    model: nn.Module, affine: tuple[str, ...], like: Tensor
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Return s and t of all that lies between, one behind the other."""
    scale, shift = like.new_ones(like.shape[1]), like.new_zeros(like.shape[1])
    for path in affine:
        pair = affine_at(model, path)
        assert pair is not None
        factor, offset = (tensor.to(like) for tensor in pair)
        scale, shift = scale * factor, shift * factor + offset
    return scale, shift
