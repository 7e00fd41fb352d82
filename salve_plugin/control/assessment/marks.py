"""Which images an edit is about: those of a class, or those that have a concept."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from salve_plugin.control.concepts.recordings import as_tensor
from salve_plugin.errors import InputError
from salve_plugin.integers import whole

Flags = Sequence[bool] | Tensor


def truth_values(has: Flags, count: int) -> Bool[Tensor, " images"]:
    """Return what a caller says of each image, checked.

    Raises:
        InputError: if it is not one truth value an image.
    """
    given = as_tensor(has, count)
    if given.dtype != torch.bool or given.shape != (count,):
        raise InputError(
            f"has is {given.dtype} of shape {list(given.shape)}; expected one truth value for each "
            f"of {count} images"
        )
    return given


def flags_of(has: Flags | None, own: int, pairs: int) -> Tensor:
    """Return whether each image has the concept, the counterparts included.

    Args:
        has: what the caller says.
        own: number of images without counterparts.
        pairs: number of counterparts.

    Raises:
        InputError: if the flags are no truth values, not one an image, or all the same.
    """
    given = torch.ones(own, dtype=torch.bool) if has is None else truth_values(has, own)
    # A counterpart is the same image with the concept taken out, or put in.
    flags = torch.cat([given, ~given]) if pairs else given
    if bool(flags.all()) or not bool(flags.any()):
        raise InputError(
            f"all {own} images are said to be alike in the concept; give images with and without "
            "it, or counterparts"
        )
    return flags


def marked_by(flags: Tensor | None, label: int | None) -> Callable[[Tensor, int], Tensor]:
    """Return what says which images are marked, from their labels and the place of the first."""

    def marked(labels: Tensor, start: int) -> Tensor:
        if flags is not None:
            return flags[start : start + len(labels)]
        # No image has the label -1, so that without a class nothing is marked.
        return labels == (-1 if label is None else label)

    return marked


def label_of(target: int | str, names: Sequence[str] | None) -> int:
    """Return the class of a name or an index.

    Raises:
        InputError: if no class of the data has that name.
    """
    if not isinstance(target, str):
        return whole(target, "target")
    if names is None or target not in names:
        raise InputError(
            f"target {target!r} is no class name of the data; there are "
            f"{'none' if names is None else list(names)[:20]}"
        )
    return list(names).index(target)
