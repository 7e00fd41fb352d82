"""Which network a piece of evidence is of: one digest of all that decides what a classifier reads.

A recording, and all that is made from it, holds for one body only. The classifier is left out of
the digest because everybody takes it as it is: evidence stays valid while it is edited or replaced.
"""

import warnings
from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from salve_plugin.composed import plain
from salve_plugin.errors import BaseMismatchError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.store.digest import Fingerprint, state_digest

OnBaseMismatch = Literal["error", "warn"]

REMEDY = (
    "use what comes from one network: attach the one it was recorded from, or record (and fit) "
    "again; for a fine-tuned copy on_base_mismatch='warn' goes on"
)


def network_digest(
    hooked: HookedModel, state: Mapping[str, Tensor | Fingerprint] | None = None
) -> str:
    """Return the identity of a model's body: the digest of its state but for the classifier's own.

    It costs one pass of SHA-256 over the weights, unless their fingerprints are given.

    Args:
        hooked: the attached model; the layers of its `heads` do not count.
        state: a state dict to take in place of the model's present one, as that without edits, or
            its fingerprints: then nothing is hashed again.

    Raises:
        UnsupportedModelError: if a tensor has no plain elements, see `state_digest`.
    """
    tensors = plain(hooked.model.state_dict() if state is None else state)
    # With the dot, or `head` would take `head_norm` along, which does decide what is read.
    layers = tuple(f"{path}." for path in hooked.heads)
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith(layers)}
    return state_digest(body)


def check_one_network(
    parts: Mapping[str, str | None],
    on_base_mismatch: OnBaseMismatch = "error",
    *,
    remedy: str = REMEDY,
) -> None:
    """Raise unless all parts are of one network, as far as is known.

    Args:
        parts: the network of each, by what it is in a sentence; None where it is not known.
        on_base_mismatch: "warn" to warn instead.
        remedy: what to do, where it is not what it is everywhere.

    Raises:
        BaseMismatchError: names the first two that differ and the way out.
    """
    check_choice(on_base_mismatch)
    # Files of before it was noted say nothing, and are not refused for that.
    known = [(name, network) for name, network in parts.items() if network is not None]
    for name, network in known[1:]:
        if network != known[0][1]:
            differ(*known[0], name, network, on_base_mismatch, remedy)


def differ(
    name: str,
    network: str,
    other_name: str,
    other_network: str,
    on_base_mismatch: OnBaseMismatch,
    remedy: str = REMEDY,
) -> None:
    """Refuse, or warn of, two things that are of different networks.

    Args:
        name: what the first is, in a sentence.
        network: its network's digest.
        other_name: what the second is.
        other_network: its network's digest.
        on_base_mismatch: "error" or "warn".
        remedy: what to do.

    Raises:
        BaseMismatchError: unless it is only warned of.
    """
    message = f"{name} is of network {network[:12]}, {other_name} of {other_network[:12]}; {remedy}"
    if on_base_mismatch == "error":
        raise BaseMismatchError(message)
    warnings.warn(message, stacklevel=4)


def check_choice(on_base_mismatch: str) -> None:
    """Check a choice before anything is computed.

    Raises:
        InputError: unless it is one of `OnBaseMismatch`.
    """
    if on_base_mismatch not in get_args(OnBaseMismatch):
        raise InputError(f"on_base_mismatch is 'error' or 'warn', not {on_base_mismatch!r}")
