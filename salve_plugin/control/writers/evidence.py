"""What writers are told: recorded inputs, class labels, and second moments of a layer's inputs."""

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from salve_plugin.control.networks import Networks
from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import check_labels
from salve_plugin.control.writers.layer import Layer
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.integers import whole
from salve_plugin.network import OnBaseMismatch

Recorded = Activations | tuple[Tensor, Tensor]
"""A recording, or (inputs (images, width), labels (images,)), whose network nobody can compare."""

RIDGE = 1e-4
"""Share of the mean second moment that is added to each: with fewer samples than inputs the moment
matrix has no inverse, and with few more its smallest eigenvalues are chance."""

_BATCH = 4096


def head_inputs(
    layer: Layer, acts: Recorded, on_base_mismatch: OnBaseMismatch
) -> tuple[Float64[Tensor, "images width"], Int64[Tensor, " images"]]:
    """Return what the classifier read and the images' labels, all in memory.

    Raises:
        BaseMismatchError: if it is a recording of another network than the model as it is, or of
            another site.
        InputError: if there is nothing, a value is not finite, or a label is no class of the head.
    """
    if isinstance(acts, Activations):
        _check_recording(layer, acts, on_base_mismatch)
        x, labels = acts.tensor(), acts.labels()
    else:
        x, labels = _pair(acts)
    if x.shape[1] != layer.weight.shape[1]:
        raise InputError(
            f"recorded inputs have {x.shape[1]} features, but '{layer.path}' reads "
            f"{layer.weight.shape[1]}; record '{layer.site.name}' of this model"
        )
    check_labels(labels, len(layer.weight))
    return x.double(), labels.long()


def class_indices(
    label: int | str | Sequence[int | str], layer: Layer, acts: object = None
) -> tuple[int, ...]:
    """Return classes of the head, given by index or by the recording's names, ascending.

    Raises:
        InputError: if one is no class of the head, or is named twice, or all are, or none.
    """
    count, names = len(layer.weight), list(getattr(acts, "classes", None) or ())
    several = label if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    indices = []
    for one in several:
        if isinstance(one, str):
            if one not in names:
                known = f"one of {names[:50]}" if names else f"an index below {count}"
                raise InputError(f"no class is named {one!r}; give {known}")
            one = names.index(one)
        index = whole(one, "label")
        if not 0 <= index < count:
            raise InputError(f"label {index} is no class of the head: it has 0 to {count - 1}")
        indices.append(index)
    if not indices or len(set(indices)) < len(indices) or len(indices) == count:
        raise InputError(
            f"labels {indices[:50]} are to be at least one class, each once, and not all {count}"
        )
    return tuple(sorted(indices))


def listed(values: Sequence[object]) -> str:
    """Return values with commas between, cut off where a note has no room for more."""
    return ", ".join(map(str, values[:20])) + (", ..." if len(values) > 20 else "")


def check_seen(classes: Sequence[int], labels: Int64[Tensor, " images"]) -> None:
    """Raise InputError unless there are images of every one of some classes."""
    missing = sorted(set(classes) - set(labels.tolist()))
    if missing:
        raise InputError(
            f"there are no images of class {missing[0]} among the {len(labels)} recorded, so that "
            "nothing is known about it; record some"
        )


def second_moment(
    layer: Layer, given: Activations | Tensor, on_base_mismatch: OnBaseMismatch = "error"
) -> Float64[Tensor, "inputs inputs"]:
    r"""Return $C = E[kk^T]$, uncentred, of a layer's inputs.

    Args:
        layer: whose inputs.
        given: C itself, or a recording of the layer's site, which is read once in pieces.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        BaseMismatchError: if it is a recording of another network or site.
        InputError: if it is neither, or no symmetric matrix of finite numbers of the layer's size.
    """
    inputs = layer.weight.shape[1]
    if isinstance(given, Activations):
        _check_recording(layer, given, on_base_mismatch)
        if given.width != inputs:
            raise InputError(
                f"'{layer.path}' reads {inputs} inputs, features times kernel positions, and the "
                f"recording has {given.width} features; give the second moment as a matrix"
            )
        # In pieces: a recording of positions is far longer than one of images.
        total = torch.zeros(inputs, inputs, dtype=torch.float64)
        for batch in given.batches(_BATCH):
            rows = batch.x.double()
            total += rows.T @ rows
        return total / given.n_rows
    square = isinstance(given, Tensor) and tuple(given.shape) == (inputs, inputs)
    if not square or not bool(given.isfinite().all()):
        shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InputError(
            f"second moment {shape} is to be a finite matrix ({inputs}, {inputs}) of the inputs of "
            f"'{layer.path}', or a recording of '{layer.site.name}'"
        )
    moment = given.detach().to("cpu", torch.float64)
    # Cholesky reads one triangle only: it would silently take another matrix for this one.
    if not torch.allclose(moment, moment.T, rtol=1e-5, atol=1e-8 * float(moment.abs().max())):
        raise InputError("the second moment is not symmetric; expected the mean of k kᵀ")
    return moment


def solved(
    moment: Float64[Tensor, "inputs inputs"],
    right: Float64[Tensor, "inputs keys"],
    ridge: float,
    *,
    counted: str = "samples than inputs",
) -> Float64[Tensor, "inputs keys"]:
    r"""Return $(C + \eta I)^{-1} B$ with $\eta$ = ridge times the mean second moment, tr C / D.

    Args:
        moment: C, positive semidefinite.
        right: B.
        ridge: relative, so that one value serves any scale and any number of samples.
        counted: what an inverse needs more of than of what else, for the message.

    Raises:
        InputError: if the ridge is negative, or the matrix has no inverse.
    """
    if not 0 <= real(ridge, "ridge") <= 1e6:  # also refuses NaN
        raise InputError(f"ridge {ridge!r} is to be a number from 0, e.g. the default {RIDGE}")
    shifted = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment)).double()
    factor, failed = torch.linalg.cholesky_ex(shifted)
    # A factorization of what is singular but for rounding may go through and mean nothing.
    # Pivots are roots of variances: 1e-7 of the largest is 1e-14 of its variance, which is what
    # rounding leaves in float64.
    diagonal = factor.diagonal()
    if int(failed) or float(diagonal.min()) <= 1e-7 * float(diagonal.max()):
        raise InputError(
            f"second moments, {len(moment)} x {len(moment)}, cannot be inverted with ridge "
            f"{ridge:g}: give more {counted}, or a ridge such as {RIDGE}"
        )
    return torch.cholesky_solve(right, factor)


def _check_recording(layer: Layer, acts: Activations, on_base_mismatch: OnBaseMismatch) -> None:
    networks = Networks(layer.hooked, on_base_mismatch, pristine=layer.base.network)
    if acts.site.name != layer.site.name:
        raise BaseMismatchError(
            f"the recording is of site '{acts.site.name}', but '{layer.path}' reads "
            f"'{layer.site.name}'; record that"
        )
    networks.check_present("the recording", acts.network_sha256)


def _pair(acts: object) -> tuple[Tensor, Tensor]:
    """Return inputs and labels that were given as two tensors."""
    shapes: object = type(acts).__name__
    if isinstance(acts, tuple) and len(acts) == 2 and all(isinstance(p, Tensor) for p in acts):
        x, labels = acts
        fits = x.ndim == 2 and len(x) and labels.shape == x.shape[:1]
        kinds = x.is_floating_point() and not labels.is_floating_point()
        if fits and kinds and bool(x.isfinite().all()):
            return x.detach().cpu(), labels.detach().cpu()
        shapes = [list(x.shape), list(labels.shape)]
    raise InputError(
        f"acts {shapes} are to be a recording, or finite inputs (images, width) and integer labels "
        "(images,), of at least one image"
    )
