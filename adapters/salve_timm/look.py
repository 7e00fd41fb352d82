"""Where Grad-FAM looks for a latent of the classifier's input."""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from salve_plugin.site import Site
from salve_plugin.taps import tapped
from salve_timm.call_log import Call, CallLog
from salve_timm.layout import Layouts
from salve_timm.points import Point, point

MOST_CANDIDATES = 24


def attribution_point(
    model: nn.Module, log: CallLog, layouts: Layouts, heads: Sequence[Site], probe: Tensor
) -> Point | None:
    """Return the deepest activation with positions on whose patches the head's input depends.

    First choice is what `forward_features` returns. If the head reads a class token, patches of
    that activation no longer matter to it (the gradient there is exactly zero), and the last norm
    before that whose patches do is taken: the one that the class token's last attention reads.
    Where there is no `forward_features`, it is the deepest norm or map. The gradient decides; on
    the meta device, which has none, the kind of pooling does.

    Args:
        model: in `quiet`.
        log: the forward pass on `probe`.
        layouts: of the model.
        heads: the sites that the classifier reads.
        probe: the batch (images, channels, height, width).
    """
    first = _features(log, layouts)
    norms = _norms(log, layouts)
    if first is not None and first.site.layout != "tokens":
        return first
    if probe.is_meta:
        return _by_pooling(model, first, norms)
    if first is not None:
        options = [first, *norms]
    else:
        # Of tokens only norms, or the keys of an attention would be deeper than what it reads. A
        # map behind the last norm is there in a network of convolutions.
        maps = [each for each in _everything(log, layouts) if each.site.layout != "tokens"]
        options = sorted([*norms, *maps], key=lambda candidate: -candidate.at)
    chosen = _first_that_matters(model, [candidate.site for candidate in options], heads, probe)
    if chosen is None:  # a family without norms, or with unusual ones
        options = _everything(log, layouts)
        chosen = _first_that_matters(model, [candidate.site for candidate in options], heads, probe)
    return None if chosen is None else options[chosen]


def _features(log: CallLog, layouts: Layouts) -> Point | None:
    """Return the point of `forward_features`' result: a module's output, else a module's input."""
    if log.features is None:
        return None
    makers = [call for call in log.calls.values() if call.result == log.features]
    for call in sorted(makers, key=lambda call: -call.ended):
        candidate = point(log, layouts, "hook_features", call.path, "out")
        if candidate is not None:
            return candidate
    readers = [call for call in log.calls.values() if call.source == log.features]
    for call in sorted(readers, key=lambda call: call.began):
        candidate = point(log, layouts, "hook_features", call.path, "in")
        if candidate is not None:
            return candidate
    return None


def _norms(log: CallLog, layouts: Layouts) -> list[Point]:
    """Return the outputs of normalizations, the deepest first."""
    calls = log.calls.items()
    norms = [path for path, call in calls if "norm" in type(call.module).__name__.lower()]
    return _deepest(log, layouts, norms, _norm_name)


def _norm_name(path: str) -> str:
    """Return the hook-point name of a norm: `a.b.ln1.hook_normalized` for `a.b.norm1`."""
    return re.sub("norm([12])$", r"ln\1", path) + ".hook_normalized"


def _everything(log: CallLog, layouts: Layouts) -> list[Point]:
    """Return the deepest module outputs with positions."""
    outputs = [path for path, call in log.calls.items() if not _is_pattern(call)]
    return _deepest(log, layouts, outputs, "{}.hook_out".format)


def _deepest(
    log: CallLog, layouts: Layouts, paths: Sequence[str], name: Callable[[str], str]
) -> list[Point]:
    """Return the outputs of modules that have several positions, the deepest first."""
    outputs = [
        candidate
        for path in paths
        if path and not _is_pooled(log.calls[path])
        if (candidate := point(log, layouts, name(path), path, "out")) is not None
    ]
    return sorted(outputs, key=lambda candidate: -candidate.at)[:MOST_CANDIDATES]


def _is_pooled(call: Call) -> bool:
    """Say whether this is a map of one position, in which nothing can be shown."""
    shape = call.result_shape
    # Whichever side the features are on: of the three, no two are above 1.
    return len(shape) == 4 and sorted(shape[1:])[1] == 1


def _is_pattern(call: Call) -> bool:
    """Say whether this may be attention, (batch, head, query, key), which looks like a map."""
    # A map that is dropped out is there before it, too.
    maybe = isinstance(call.module, (nn.Softmax, nn.Dropout, nn.Identity))
    return maybe and len(call.result_shape) == 4


def _by_pooling(model: nn.Module, first: Point | None, norms: list[Point]) -> Point | None:
    """Choose without gradients: class-token pooling sees patches at the last `norm1` only."""
    by_class_token = getattr(model, "global_pool", "") in ("token", "tok", "cls")
    if first is not None and (first.site.prefix_tokens == 0 or not by_class_token):
        return first
    return next(
        (candidate for candidate in norms if candidate.site.module.endswith("norm1")), first
    )


def _first_that_matters(
    model: nn.Module, options: Sequence[Site], heads: Sequence[Site], probe: Tensor
) -> int | None:
    """Return the index of the first site with a non-zero gradient on its patches."""
    if not options:
        return None
    if any(weight.is_inference() for weight in (*model.parameters(), *model.buffers())):
        model = deepcopy(model)  # whose tensors autograd takes
    with torch.inference_mode(False), torch.enable_grad():
        activations, head_inputs = _forward(model, options, heads, probe)
        generator = torch.Generator().manual_seed(0)
        # A random direction: the plain sum over a layer-normalized input is constant.
        loss = sum(
            (x * torch.randn(x.shape, generator=generator).to(x)).sum()
            for x in head_inputs.values()
        )
        wanted = [activations[index] for index in range(len(options)) if index in activations]
        if not isinstance(loss, Tensor) or not loss.requires_grad or not wanted:
            return None
        # A candidate may lie beside the way to the heads, and has no gradient then.
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    for index, gradient in zip(sorted(activations), gradients, strict=True):
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
    activations: dict[int, Tensor] = {}
    head_inputs: dict[str, Tensor] = {}

    def keep(index: int, activation: Tensor) -> Tensor:
        activations[index] = activation.clone()
        return activations[index].clone()  # an in-place operation that follows hits this copy

    def read(name: str, activation: Tensor) -> None:
        head_inputs[name] = activation

    with ExitStack() as stack:
        for index, site in enumerate(options):
            stack.enter_context(tapped(model, site, partial(keep, index)))
        for site in heads:
            stack.enter_context(tapped(model, site, partial(read, site.name)))
        # The images require a gradient, so that there is a graph even where all weights are frozen.
        model(probe.detach().clone().requires_grad_())
    return activations, head_inputs
