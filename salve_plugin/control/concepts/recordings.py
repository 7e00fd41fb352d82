"""The recordings that a concept is found in, and which of their images are said to have it."""

import torch
from jaxtyping import Bool
from torch import Tensor

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.network import OnBaseMismatch, check_one_network

LEAST = 4
"""Images with and without the concept that are needed for any held-out judgement."""


def checked_recordings(
    acts: Activations,
    has: object,
    without: Activations | None,
    on_base_mismatch: OnBaseMismatch,
    dictionary: Dictionary | None = None,
) -> tuple[tuple[Activations, ...], Bool[Tensor, " images"]]:
    """Return the recordings, of one site and network, and which of their images have the concept.

    Raises:
        SalveError: as for `find_concept`.
    """
    recordings, flags = with_flags(acts, has, without)
    check_one_site(recordings, dictionary, on_base_mismatch)
    return recordings, flags


def with_flags(
    acts: Activations, has: object, without: Activations | None
) -> tuple[tuple[Activations, ...], Bool[Tensor, " images"]]:
    """Return the recordings and which of their images have the concept.

    Raises:
        InputError: unless enough images do and enough do not.
    """
    if not isinstance(acts, Activations) or not isinstance(without, Activations | None):
        raise InputError(
            f"a concept is found in recordings; got {type(acts).__name__} and "
            f"{type(without).__name__}: pass those of salve.record"
        )
    if (has is None) == (without is None):
        raise InputError("give either `has`, one truth value an image, or `without`")
    if without is not None:
        flags = torch.zeros(acts.n_images + without.n_images, dtype=torch.bool)
        flags[: acts.n_images] = True
        recordings: tuple[Activations, ...] = (acts, without)
    else:
        recordings, flags = (acts,), _flags(has, acts.n_images)
    with_, total = int(flags.sum()), len(flags)
    if min(with_, total - with_) < LEAST:
        raise InputError(
            f"{with_} of {total} images have the concept; at least {LEAST} with and {LEAST} "
            "without it are needed to judge it on images that it was not found on"
        )
    return recordings, flags


def _flags(has: object, n_images: int) -> Bool[Tensor, " images"]:
    flags = as_tensor(has, n_images)
    # An attribute of a data set is often 0 and 1; of any other numbers nobody knows which mean yes.
    binary = flags.dtype == torch.bool or bool(((flags == 0) | (flags == 1)).all())
    if flags.shape != (n_images,) or not binary:
        raise InputError(
            f"has is {flags.dtype}{list(flags.shape)}; expected one truth value (or 0 and 1) for "
            f"each of the recording's {n_images} images"
        )
    # A copy: the caller's own tensor may change, and a concept is a value.
    return flags.to(torch.bool, copy=True)


def check_one_site(
    recordings: tuple[Activations, ...],
    dictionary: Dictionary | None = None,
    on_base_mismatch: OnBaseMismatch = "error",
) -> None:
    """Raise unless recordings and dictionary are of one site and network.

    Raises:
        SalveError: as for `find_concept`.
    """
    kinds = [type(acts).__name__ for acts in recordings if not isinstance(acts, Activations)]
    if kinds or not isinstance(dictionary, Dictionary | None):
        raise InputError(
            f"a concept is found in recordings, with a dictionary or without; got {kinds} and "
            f"{type(dictionary).__name__}: pass what salve.record and salve.fit return"
        )
    site = recordings[0].site
    sites = [acts.site for acts in recordings] + ([dictionary.site] if dictionary else [])
    if any((other.name, other.width) != (site.name, site.width) for other in sites):
        raise InputError(
            f"recordings and dictionary are of the sites {[other.name for other in sites]} with "
            f"{[other.width for other in sites]} features; a concept is found at one site"
        )
    networks = {"the recording": recordings[0].network_sha256}
    if len(recordings) > 1:
        networks["the recording without"] = recordings[1].network_sha256
    if dictionary is not None:
        networks["the dictionary"] = dictionary.network
    check_one_network(networks, on_base_mismatch)


def as_tensor(has: object, count: int) -> Tensor:
    """Return what a caller says of each image as a tensor on the CPU.

    Raises:
        InputError: if it cannot be one.
    """
    try:
        return torch.as_tensor(has).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"has {has!r:.80} is no list of truth values ({error}); give one for each of {count} "
            "images"
        ) from error
