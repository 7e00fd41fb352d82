"""The classifier: the linear layers whose weighted outputs are the logits, proven on a probe."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from salve_plugin.errors import UnsupportedModelError
from salve_timm.call_log import CallLog
from salve_timm.probe import WRAP, pretrained_cfg

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Head:
    """One linear layer of the classifier.

    Attributes:
        path: of the `Linear` or 1x1 `Conv2d`.
        width: the number of features that it reads.
        share: its weight c in logits = sum of c (W x + b) over all heads.
    """

    path: str
    width: int
    share: float


def is_linear(module: nn.Module) -> bool:
    """Say whether the module computes x W^T + b at every position on its own."""
    if isinstance(module, nn.Linear):
        return True
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
    )


def width_of(module: nn.Module) -> int:
    """Return how many features the layer reads (timm's `num_features` is often another number)."""
    width = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    assert isinstance(width, int)
    return width


def candidates(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of paths that timm calls the classifier: by name, then by method.

    Raises:
        UnsupportedModelError: if there is no classifier; the message says what was found.
    """
    named = pretrained_cfg(model).get("classifier") or ()
    by_name = tuple(
        path
        for path in ((named,) if isinstance(named, str) else tuple(named))
        if _linear_paths(model, path)
    )
    by_method = _from_method(model)
    groups = [group for group in dict.fromkeys([by_name, by_method]) if group]
    if not groups:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no classifier to read or edit: "
            f"num_classes={getattr(model, 'num_classes', None)}, classifier named "
            f"{named or None!r} is {_kind_of(model, named)}. Create the model with its classes "
            "(num_classes=...), without features_only, and do not reset the classifier to 0"
        )
    return groups


def named_head(model: nn.Module, path: str) -> list[tuple[str, ...]]:
    """Return the one group that the caller names.

    Raises:
        UnsupportedModelError: if there is no linear layer at or under the path.
    """
    if not _linear_paths(model, path):
        raise UnsupportedModelError(
            f"'{path}' of {type(model).__name__} is {_kind_of(model, path)}, with no Linear or 1x1 "
            "Conv2d in it; head is the path of the linear layer whose output the logits are"
        )
    return [(path,)]


def linear_paths(model: nn.Module, groups: list[tuple[str, ...]]) -> set[str]:
    """Return the paths of every linear layer at or under the groups' paths."""
    return {inner for group in groups for path in group for inner in _linear_paths(model, path)}


def proven(
    model: nn.Module, groups: list[tuple[str, ...]], log: CallLog, probe: Tensor
) -> tuple[Head, ...]:
    """Return the heads of the first group that reproduces the traced logits.

    Several heads' shares are measured one by one, by how the logits answer to a push on a head's
    output. They cannot be read off the logits alone: outputs may be tiny, or zero in a fresh model.

    On the meta device there are no values, so that only calls and shapes are compared, and only
    the largest group is tried: that a part of it would do as well is for values to show.

    Args:
        model: in `quiet`.
        groups: of paths, from `candidates`.
        log: the forward pass on `probe`, with the inputs of the groups' linear layers.
        probe: the batch (images, channels, height, width).

    Raises:
        UnsupportedModelError: if none does; the message says what was found.
    """
    logits = log.output
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        remedy = (
            "create it with its pooling and without features_only"
            if isinstance(logits, Tensor) or hasattr(model, "feature_info")
            else WRAP
        )
        raise UnsupportedModelError(
            f"{type(model).__name__} returns {shape} where logits (batch, classes) were "
            f"expected; {remedy}"
        )
    if not logits.is_meta and not bool(logits.isfinite().all()):
        raise UnsupportedModelError(
            f"{type(model).__name__} returns NaN or infinite logits for the probe batch; check "
            "its weights, or pass a batch of real images: attach(model, probe=images)"
        )
    refusals = []
    for group in [max(groups, key=len)] if logits.is_meta else groups:
        layers = [_last_that_ran(model, path, log) for path in group]
        paths = list(dict.fromkeys(path for path in layers if path))
        outcome = _shares(model, paths, log, probe)
        if not isinstance(outcome, str):
            return tuple(
                Head(path, width_of(model.get_submodule(path)), share)
                for path, share in zip(paths, outcome, strict=True)
            )
        refusals.append(f"{list(group)}: {outcome}")
    raise UnsupportedModelError(
        f"the classifier of {type(model).__name__} is not linear in the features it reads: "
        + "; ".join(dict.fromkeys(refusals))
        + _advice(model)
    )


def _shares(model: nn.Module, paths: list[str], log: CallLog, probe: Tensor) -> list[float] | str:
    """Return each head's share of the logits, or why they are not the sum of the heads."""
    if not paths:
        return "no Linear or 1x1 Conv2d in it ran"
    outputs = []
    for path in paths:
        output = _output(model.get_submodule(path), path, log)
        if isinstance(output, str):
            return output
        outputs.append(output)
    if probe.is_meta:
        return [1 / len(paths)] * len(paths)
    logits: Tensor = log.output
    shares = [1.0]
    # One head whose output is not zero is proven by its values alone, without further passes.
    if len(paths) > 1 or not bool(logits.any()):
        measured = [
            _measured(model, path, probe, logits, len(paths), _tolerance(path, log))
            for path in paths
        ]
        shares = [share for share in measured if share is not None]
    if len(paths) == 1 and shares != [1.0]:
        return f"'{paths[0]}' gives only a part of the logits ({shares})"
    tolerance = max(_tolerance(path, log) for path in paths)
    if len(shares) == len(paths) and _sums_to(
        torch.stack(outputs).double(), shares, logits, tolerance
    ):
        return shares
    return "no weighted sum of these layers' outputs equals the logits"


def _output(layer: nn.Module, path: str, log: CallLog) -> Tensor | str:
    """Return x W^T + b for the layer's traced input, or why it is no head."""
    x, call, logits = log.inputs.get(path), log.calls[path], log.output
    if x is None or call.times != 1:
        return f"'{path}' ran {call.times} times"
    if x.shape[1:].numel() != width_of(layer) or len(x) != len(logits):
        return (
            f"'{path}' reads {tuple(x.shape)} where one row of {width_of(layer)} features "
            "an image was expected"
        )
    if not isinstance(weight := getattr(layer, "weight", None), Tensor):
        return f"the weight of '{path}' is {type(weight).__name__}, not a tensor"
    # Parametrized and pruned layers compute theirs; to be read, it need not be a parameter. In
    # single precision at least, since autocast may have cast the input.
    kind = torch.promote_types(torch.promote_types(weight.dtype, x.dtype), torch.float32)
    weight = weight.detach().flatten(1).to(kind)
    if len(weight) != logits.shape[1]:
        return f"'{path}' has {len(weight)} outputs for {logits.shape[1]} logits"
    bias = layer.bias.detach().to(kind) if isinstance(layer.bias, Tensor) else None
    return functional.linear(x.flatten(1).to(kind), weight, bias)


def _measured(
    model: nn.Module, path: str, probe: Tensor, logits: Tensor, heads: int, tolerance: float
) -> float | None:
    """Return c if adding any d to the head's output adds c d to the logits, else None."""
    generator = torch.Generator().manual_seed(0)
    # As large as the logits, or their rounding would drown it, and not zero where they are.
    size = float(logits.abs().max()) + 1
    pushes = []

    def push(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        pushes.append(size * torch.randn(output.shape, generator=generator).to(output))
        return output + pushes[-1]

    handle = model.get_submodule(path).register_forward_hook(push)
    try:
        moved = (model(probe) - logits).double()
    finally:
        handle.remove()
    pushed = pushes[-1].flatten(1).double()
    # The least-squares c of moved = c pushed; that it fits everywhere is checked, not assumed.
    share = float((moved * pushed).sum() / pushed.square().sum())
    if bool((moved - share * pushed).abs().max() > tolerance * size):
        return None
    # A plain mean is recognized, so that its share is free of rounding: a single head's is then 1
    # exactly, with which the caller compares it.
    return 1 / heads if abs(share - 1 / heads) <= tolerance else share


def _tolerance(path: str, log: CallLog) -> float:
    """Return the relative tolerance of the coarsest type that the head's output has passed.

    Not of the logits' alone: a forward pass under autocast often ends with a cast to float32.
    """
    kinds = (log.output.dtype, log.calls[path].result_dtype)
    return max(TOLERANCE.get(kind, 1e-4) for kind in kinds if kind is not None)


def _sums_to(heads: Tensor, shares: list[float], logits: Tensor, tolerance: float) -> bool:
    total = (heads * heads.new_tensor(shares)[:, None, None]).sum(0)
    tolerance = tolerance * float(logits.abs().max())
    # A fresh model's logits may all be zero, which leaves no relative tolerance.
    return bool((total - logits.double()).abs().max() <= max(tolerance, 1e-10))


def _linear_paths(model: nn.Module, path: str) -> list[str]:
    try:
        root = model.get_submodule(path)
    except AttributeError:
        return []
    inner = [
        f"{path}.{name}".rstrip(".") for name, module in root.named_modules() if is_linear(module)
    ]
    return [path] if is_linear(root) else inner


def _last_that_ran(model: nn.Module, path: str, log: CallLog) -> str | None:
    # A classifier may have layers before its last one, or some that are used in training only.
    ran = [inner for inner in _linear_paths(model, path) if inner in log.calls]
    return max(ran, key=lambda inner: log.calls[inner].ended, default=None)


def _from_method(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of what `get_classifier()` returns."""
    method = getattr(model, "get_classifier", None)
    if method is None:
        return ()
    try:
        classifier = method()
    except (AttributeError, KeyError, TypeError):  # a pruned or half-built model
        return ()
    members = classifier if isinstance(classifier, (tuple, list, nn.ModuleList)) else (classifier,)
    flat = [
        inner
        for member in members
        for inner in (member if isinstance(member, (tuple, list, nn.ModuleList)) else (member,))
    ]
    names = {id(module): path for path, module in model.named_modules()}
    paths = [names[id(member)] for member in flat if id(member) in names]
    return tuple(path for path in paths if _linear_paths(model, path))


def _kind_of(model: nn.Module, named: object) -> str:
    try:
        return type(model.get_submodule(str(named))).__name__ if named else "not named"
    except AttributeError:
        return "absent"


def _advice(model: nn.Module) -> str:
    """Say what can be done about a classifier that is not linear."""
    if getattr(model, "aux_head", None) is not None:
        return (
            ". An auxiliary head adds the maximum over its tokens: create the model with "
            "use_aux_head=False to read and edit the main head"
        )
    return ". SALVE edits linear classifiers only"
