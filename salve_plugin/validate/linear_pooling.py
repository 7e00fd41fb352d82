"""Whether a site is a weighted mean of a layer's positions, and with which weights.

What an average pools can be taken apart: x = Σ_p a_p A(p) with weights that no image changes. Then
dx_k/dA_k'(p) is a_p for k = k' and 0 otherwise, which one backward pass tells: a random vector u
comes back as a_p u at every position. A pooling that depends on the activations (generalized mean,
attention), reads one token only, or is followed by a norm or a layer returns something else.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.layout import Tokens, as_map
from salve_plugin.validate.tracing import GraphSlice, joined, pull_back

_ROUNDING = 256
"""Units in the last place by which a pooled gradient may differ from a_p u."""


def position_weights(graph: GraphSlice, tokens: Tokens, axis: int) -> Float[Tensor, "h w"] | None:
    """Return a_p, or None if the site is no such mean of the layer.

    Args:
        graph: from the layer to the site; it can be used again.
        tokens: the layer's layout.
        axis: of the site's features.

    Raises:
        InputError: if there is no image, of which nothing could be told.
    """
    site, layer = joined(graph.site), joined(graph.layer)
    if not len(site):
        raise InputError("there is no image to explain; pass a batch of at least one")
    width = site.shape[axis]
    if site.numel() != len(site) * width or as_map(layer[:1], tokens).shape[1] != width:
        return None
    # Gaussian, of a fixed seed and the same for all images: no entry is 0, no two are alike.
    random = torch.Generator().manual_seed(0)
    probe = torch.randn(width, generator=random, dtype=torch.float32).to(site)
    cotangent = probe.expand(len(site), width).reshape(site.shape)
    gradient = pull_back(graph, cotangent, {"retain_graph": True})
    if gradient is None:
        return None
    returned = as_map(gradient, tokens)
    probe = probe.to(returned)
    # The a_p that fit all images and features best; that they fit each one is checked below.
    weights = torch.einsum("bkhw,k->hw", returned, probe) / (len(site) * probe.square().sum())
    expected = torch.einsum("hw,k->khw", weights, probe)
    tolerance = _ROUNDING * torch.finfo(site.dtype).eps * returned.abs().max()
    if not weights.any() or not bool(((returned - expected).abs() <= tolerance).all()):
        return None
    return weights
