"""Which model an edit was made for: its description and the digests of the weights it touches."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from torch import Tensor, nn

from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel
from salve_plugin.store.digest import Fingerprint as Fingerprint
from salve_plugin.store.record import Notes, ParameterPath, Record, Sha256


@dataclass(frozen=True)
class Base(Record):
    """The model that an edit belongs to.

    Known twice: by what the edit touches, which is needed to apply it, and by one digest over
    everything, which is needed to prove that nothing else was changed.

    Attributes:
        description: the hooked model's own description (family, architecture, ...), JSON values.
        tensors: fingerprint of every parameter that the edit touches, by its path in the bare
            model, taken without any edit.
        state: digest over all tensors of the model's state dict without any edit, see
            `state_digest`; None where nobody looked.
        network: the part of that which evidence is compared by, see `network_digest`.
    """

    __repr__ = one_line

    description: Notes
    tensors: Annotated[dict[ParameterPath, Fingerprint], Meta(min_length=1, max_length=256)]
    state: Sha256 | None = None
    network: Sha256 | None = None


def same_base(one: Base, other: Base) -> bool:
    """Tell whether two bases are of one model, as far as they say.

    Their descriptions are equal, and so are the fingerprints of the parameters that are in both,
    and the digests over everything and over the network, where both have one.
    """
    # Edits of different layers have no tensor in common; then the digests tell, where both are
    # known.
    shared = one.tensors.keys() & other.tensors.keys()
    digests = ((one.state, other.state), (one.network, other.network))
    return (
        one.description == other.description
        and all(None in pair or pair[0] == pair[1] for pair in digests)
        and all(one.tensors[path] == other.tensors[path] for path in shared)
    )


def plain_json(values: Mapping[str, object]) -> dict[str, object]:
    """Return a deep copy that consists of plain JSON values.

    Raises:
        InputError: if a value has no JSON form.
    """
    try:
        # There and back: tuples become the lists that a manifest has once it is read from its file.
        copy = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the model's description has no JSON form: {error}") from error
    assert isinstance(copy, dict)
    return copy


def dtype_name(tensor: Tensor) -> str:
    """Return e.g. `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def bare(model: nn.Module) -> nn.Module:
    """Return the model itself, without what `attach` and `torch.compile` put around it.

    Raises:
        InputError: if it is no model.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"a model was expected, the bare one or the attached one; got {model!r:.200}"
        )
    # In any order: what is attached may be compiled, and what is compiled attached.
    while True:
        if isinstance(model, HookedModel):
            model = model.model
        # By the name that torch.compile keeps the model under, as its wrapper has no public class.
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
