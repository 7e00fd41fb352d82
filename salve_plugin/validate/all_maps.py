"""Grad-FAM of every latent of a dictionary from one forward pass.

The map of latent l is linear in the latent's gradient: map_l(p) = Σ_k w_lk A_k(p) with w_lk the
mean over positions of dz_l/dA_k. At a pooled site x it is a directional derivative of the encoder,

    map_l(p) = d/dt z_l(x + t r(p)) at t = 0,        r_d(p) = Σ_k m_dk A_k(p),

with m_dk the mean over positions of dx_d/dA_k, which has nothing to do with the latents. So there
is one derivative of the encoder for each position, not one backward pass for each latent. Where x
is a mean of the map itself, r(p) is A(p) over the area, and m needs no backward pass either.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.integers import whole
from salve_plugin.kinds import several
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.latent_trace import Trace
from salve_plugin.validate.latents import image_latents, latent_index
from salve_plugin.validate.layout import as_map
from salve_plugin.validate.linear_pooling import position_weights
from salve_plugin.validate.tracing import joined, pull_back
from salve_plugin.validate.weighted_maps import finished, no_dependence, no_gradient

MOST_ELEMENTS = 1 << 22
"""Gradients at the layer that are held at once: 16 MiB in float32."""

POSITIONS = 256
"""Positions, each with all latents, that are differentiated at once."""

Encode = Callable[[Tensor], Tensor]
"""From the site's activation to the latents of each image, (batch, latents)."""


def grad_fam_maps(
    fam: LayerGradFam,
    inputs: Tensor | tuple[Tensor, ...],
    latents: Sequence[int] | Int[Tensor, " latents"] | Int[Tensor, "batch latents"] | None = None,
    *,
    additional_forward_args: object | None = None,
) -> Float[Tensor, "batch latents h w"]:
    """Return the Grad-FAM maps of many latents, each as `fam.attribute` gives it.

    Memory beyond the result is bounded.

    Args:
        fam: says model, layer, dictionary, site and stage.
        inputs: images, or the model's several inputs, batch first.
        latents: which, the same of all images, or of each its own; None takes all.
        additional_forward_args: passed to the model after the inputs.

    Raises:
        InputError: if a latent does not exist; or as `LayerGradFam.attribute`.
        AttributionError: as `LayerGradFam.attribute`.
        HookNotFiredError: if the forward pass does not run the layer or the site.
    """
    if type(fam) is not LayerGradFam:
        raise InputError(f"fam must be a LayerGradFam, got {type(fam).__name__}")
    with fam._traced(inputs, additional_forward_args) as trace:
        features, axis = fam._features(trace)

        def encode(x: Tensor) -> Tensor:
            return image_latents(fam.dictionary, x, axis, fam.stage)

        with torch.no_grad():
            n_latents = encode(features[:1]).shape[1]
        index = _index(latents, len(features), n_latents)
        directions = _directions(trace, features, axis, index.shape[1])
        if directions is not None:
            maps = _derivatives(encode, features, directions, index)
        else:
            gradients = _gradients(encode, features, index, _step(joined(trace.graph.layer)))
            maps = _weighted(trace, gradients)
    return finished(maps, relu=False, summed=False)


def _index(latents: object, batch: int, n_latents: int) -> Int[Tensor, "batch latents"]:
    """Return the latents of each image.

    Raises:
        InputError: if one does not exist, or there are not as many lists of them as images.
    """
    if isinstance(latents, Tensor) and latents.ndim == 2:
        if len(latents) != batch:
            raise InputError(
                f"latents of {len(latents)} images for {batch}; give a row for each, or one list "
                "for all"
            )
        return latent_index(latents, latents.numel(), n_latents).view(latents.shape)
    wanted = list(range(n_latents)) if latents is None else latents
    if not isinstance(wanted, Tensor):
        given = several(wanted, "latents", "a list of latents, or a tensor with one for each image")
        wanted = torch.tensor([whole(latent, "a latent") for latent in given], dtype=torch.int64)
    flat = wanted
    return latent_index(flat, flat.numel(), n_latents).expand(batch, -1)


def _directions(
    trace: Trace, features: Tensor, axis: int, count: int
) -> Float[Tensor, "batch width h w"] | None:
    """Return r(p) at a pooled site; None where it costs more than it saves."""
    tokens, layer = trace.tokens(), joined(trace.graph.layer)
    pooling = position_weights(trace.graph, tokens, axis)
    if pooling is not None:
        # dx_d/dA_k(p) is a_p for d = k and 0 otherwise, so that m is the mean of a_p times the
        # identity.
        return as_map(layer, tokens) * pooling.mean().to(features)
    width = features.shape[axis]
    # One backward pass for each feature of the site against one for each latent that is asked for.
    if features.numel() != len(features) * width or width >= count:
        return None
    units = torch.split(
        torch.eye(width, device=features.device, dtype=features.dtype), _step(layer)
    )
    shape = (-1, *features.shape)
    spread = (part[:, None].expand(-1, len(features), -1).reshape(shape) for part in units)
    return _weighted(trace, spread)


def _weighted(trace: Trace, cotangents: Iterable[Tensor]) -> Float[Tensor, "batch maps h w"]:
    """Return the map of each cotangent: channels weighted by the mean of their gradient.

    Args:
        trace: whose graph is used again.
        cotangents: pieces (some, batch, ...), as the site's activation.
    """
    tokens = trace.tokens()
    activation, maps = as_map(joined(trace.graph.layer), tokens), []
    asked = reached = False
    for part in cotangents:
        gradient = pull_back(trace.graph, part, {"retain_graph": True}, several=True)
        if gradient is None:
            raise AttributionError(no_dependence(trace.layer))
        asked, reached = asked or bool(part.any()), reached or bool(gradient.any())
        weights = as_map(gradient.flatten(0, 1), tokens).mean((2, 3)).reshape(*part.shape[:2], -1)
        maps.append(torch.einsum("mbk,bkhw->bmhw", weights, activation))
    if asked and not reached:
        raise AttributionError(no_gradient(trace.layer))
    return torch.cat(maps, 1)


def _derivatives(
    encode: Encode,
    features: Tensor,
    directions: Float[Tensor, "batch width h w"],
    index: Int[Tensor, "batch latents"],
) -> Float[Tensor, "batch latents h w"]:
    """Return the derivative of every latent along the direction of every position."""
    height, width = directions.shape[2:]
    rows = directions.flatten(2).transpose(1, 2).reshape(-1, *features.shape[1:])
    image = torch.arange(len(features)).repeat_interleave(height * width)
    parts = []
    try:
        for own, tangents in zip(
            torch.split(image, POSITIONS), torch.split(rows, POSITIONS), strict=True
        ):
            along = _derivative(encode, features[own], tangents)
            parts.append(along.gather(1, index[own].to(along.device)))
    except RuntimeError:
        # A dictionary of the caller's own may do what cannot be differentiated twice.
        pieces = [
            torch.einsum("lbd,bdhw->blhw", part.flatten(2), directions)
            for part in _gradients(encode, features, index, POSITIONS)
        ]
        return torch.cat(pieces, 1)
    maps = torch.cat(parts).reshape(len(features), height * width, -1)
    return maps.transpose(1, 2).reshape(len(features), -1, height, width)


def _derivative(encode: Encode, x: Tensor, tangents: Tensor) -> Float[Tensor, "rows latents"]:
    """Return J(x) t for each row.

    By two reverse passes: u ↦ Jᵀu is linear in u, and the transpose of that is J. torch's
    forward-mode differentiation loads its deprecated compiler, which warns.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        latents = encode(x)
        # At any u, since the map is linear in it: only its slope is asked for.
        u = torch.zeros_like(latents, requires_grad=True)
        options: dict[str, bool] = {"create_graph": True, "materialize_grads": True}
        (pulled,) = torch.autograd.grad(latents, x, u, **options)
        if not pulled.requires_grad:  # no latent depends on the rows
            return torch.zeros_like(latents)
        (pushed,) = torch.autograd.grad(pulled, u, tangents, materialize_grads=True)
    return pushed.detach()


def _gradients(
    encode: Encode, features: Tensor, index: Int[Tensor, "batch latents"], step: int
) -> Iterator[Tensor]:
    """Yield the gradients of latents at the site, `step` at a time: (some, batch, ...)."""
    leaf = features.detach().requires_grad_()
    with torch.enable_grad():
        latents = encode(leaf)
    for part in torch.split(index.T, step):
        ones = latents.new_zeros(len(part), *latents.shape)
        ones.scatter_(2, part[..., None].to(latents.device), 1.0)
        (gradient,) = torch.autograd.grad(
            latents, leaf, ones, is_grads_batched=True, retain_graph=True
        )
        yield gradient


def _step(layer: Tensor) -> int:
    """Return how many gradients at the layer may be held at once."""
    return max(1, MOST_ELEMENTS // layer.numel())
