"""Where Grad-FAM looks for a latent of the classifier's input."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from salve_plugin.site import Site
from salve_plugin.taps import tapped
from salve_timm.layout import Layouts
from salve_timm.points import Point, point
from salve_timm.trace import Trace

MOST_CANDIDATES = 24


def attribution_point(
    model: nn.Module, seen: Trace, layouts: Layouts, heads: Sequence[Site], probe: Tensor
) -> Point | None:
    """Return the deepest activation with positions on whose patches the head's input depends.

    First choice is what `forward_features` returns. If the head reads a class token, patches of
    that activation no longer matter to it (the gradient there is exactly zero), and the last norm
    before that whose patches do is taken: the one that the class token's last attention reads.
    The gradient decides; on the meta device, which has none, the kind of pooling does.
    """
    first = _features(seen, layouts)
    norms = _norms(seen, layouts)
    if first is not None and first.site.layout != "tokens":
        return first
    options = ([first] if first is not None else []) + norms
    if probe.is_meta:
        return _by_pooling(model, first, norms)
    chosen = _first_that_matters(model, [each.site for each in options], heads, probe)
    if chosen is None:
        options = _everything(seen, layouts)
        chosen = _first_that_matters(model, [each.site for each in options], heads, probe)
    return None if chosen is None else options[chosen]


def _features(seen: Trace, layouts: Layouts) -> Point | None:
    """Return the point of `forward_features`' result: a module's output, else a module's input."""
    if seen.features is None:
        return None
    made = [call for call in seen.calls.values() if call.result == seen.features]
    for call in sorted(made, key=lambda call: -call.ended):
        found = point(seen, layouts, "hook_features", call.path, "out")
        if found is not None:
            return found
    read = [call for call in seen.calls.values() if call.source == seen.features]
    for call in sorted(read, key=lambda call: call.began):
        found = point(seen, layouts, "hook_features", call.path, "in")
        if found is not None:
            return found
    return None


def _norms(seen: Trace, layouts: Layouts) -> list[Point]:
    """Return the outputs of normalizations, the deepest first."""
    norms = [
        found
        for path, call in seen.calls.items()
        if "norm" in type(call.module).__name__.lower() and path
        if (found := point(seen, layouts, _norm_name(path), path, "out")) is not None
    ]
    return sorted(norms, key=lambda each: -each.at)[:MOST_CANDIDATES]


def _norm_name(path: str) -> str:
    """Return the hook-point name of a norm: `a.b.ln1.hook_normalized` for `a.b.norm1`."""
    return re.sub("norm([12])$", r"ln\1", path) + ".hook_normalized"


def _everything(seen: Trace, layouts: Layouts) -> list[Point]:
    """Return the deepest module outputs with positions."""
    found = [
        each
        for path in seen.calls
        if path
        if (each := point(seen, layouts, f"{path}.hook_out", path, "out")) is not None
    ]
    return sorted(found, key=lambda each: -each.at)[:MOST_CANDIDATES]


def _by_pooling(model: nn.Module, first: Point | None, norms: list[Point]) -> Point | None:
    """Choose without gradients: class-token pooling sees patches at the last `norm1` only."""
    by_class_token = getattr(model, "global_pool", "") in ("token", "tok", "cls")
    if first is not None and (first.site.prefix_tokens == 0 or not by_class_token):
        return first
    return next((each for each in norms if each.site.module.endswith("norm1")), first)


def _first_that_matters(
    model: nn.Module, options: Sequence[Site], heads: Sequence[Site], probe: Tensor
) -> int | None:
    """Return the index of the first site with a non-zero gradient on its patches."""
    if not options:
        return None
    with torch.inference_mode(False), torch.enable_grad():
        kept, reads = _forward(model, options, heads, probe)
        generator = torch.Generator().manual_seed(0)
        # A random direction: the plain sum over a layer-normalized input is constant.
        loss = sum(
            (x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in reads.values()
        )
        wanted = [kept[index] for index in range(len(options)) if index in kept]
        if not isinstance(loss, Tensor) or not loss.requires_grad or not wanted:
            return None
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    for index, gradient in zip(sorted(kept), gradients, strict=True):
        if gradient is None:
            continue
        site = options[index]
        patches = gradient[:, site.prefix_tokens :] if site.layout == "tokens" else gradient
        if bool(patches.count_nonzero() > 0):
            return index
    return None


def _forward(
    model: nn.Module, options: Sequence[Site], heads: Sequence[Site], probe: Tensor
) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Run the model once; return the candidates' activations and the heads' inputs."""
    kept: dict[int, Tensor] = {}
    reads: dict[str, Tensor] = {}

    def keep(index: int, activation: Tensor) -> Tensor:
        kept[index] = activation.clone()
        return kept[index].clone()  # an in-place operation that follows hits this copy

    def read(name: str, activation: Tensor) -> None:
        reads[name] = activation

    with ExitStack() as stack:
        for index, site in enumerate(options):
            stack.enter_context(tapped(model, site, partial(keep, index)))
        for site in heads:
            stack.enter_context(tapped(model, site, partial(read, site.name)))
        model(probe.detach().clone().requires_grad_())
    return kept, reads
