"""Which model an edit was made for: its description and the digests of the weights it touches."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.store.digest import sha256_tensor


@dataclass(frozen=True)
class Fingerprint:
    """One tensor's identity.

    Attributes:
        shape: as stored in the model (a 1x1 convolution keeps its four axes).
        dtype: torch's name without the prefix, e.g. `float32`.
        sha256: hex digest of the elements, row-major, in that dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    sha256: str

    @classmethod
    def of(cls, tensor: Tensor) -> "Fingerprint":
        """Return the fingerprint of a tensor; costs one pass of SHA-256 over its bytes."""
        return cls(tuple(tensor.shape), dtype_name(tensor), sha256_tensor(tensor))

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return {"shape": list(self.shape), "dtype": self.dtype, "sha256": self.sha256}

    @classmethod
    def from_json(cls, fields: object) -> "Fingerprint":
        """Rebuild a fingerprint from `to_json`.

        Raises:
            InputError: if a field is missing, unknown or ill-typed.
        """
        if not isinstance(fields, Mapping) or set(fields) != {"shape", "dtype", "sha256"}:
            raise InputError(
                f"a fingerprint has the fields shape, dtype and sha256; got {fields!r}"
            )
        shape, dtype, sha256 = fields["shape"], fields["dtype"], fields["sha256"]
        whole = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
        is_digest = isinstance(sha256, str) and len(sha256) == 64
        if not (whole and isinstance(dtype, str) and is_digest):
            raise InputError(f"ill-typed fingerprint {fields!r}")
        return cls(tuple(shape), dtype, sha256)

    def __str__(self) -> str:
        """Name the shape, the dtype and the start of the digest."""
        return f"{self.dtype}{list(self.shape)} sha256 {self.sha256[:12]}…"


@dataclass(frozen=True)
class Base:
    """The model that an edit belongs to.

    Attributes:
        description: the hooked model's own description (family, architecture, ...), JSON values.
        tensors: fingerprint of every weight that the edit touches, by its path in the bare model,
            taken without any edit.
    """

    description: Mapping[str, object]
    tensors: Mapping[str, Fingerprint]

    def to_json(self) -> dict[str, object]:
        """Return the fields as plain JSON values."""
        return {
            "description": dict(self.description),
            "tensors": {path: print_.to_json() for path, print_ in sorted(self.tensors.items())},
        }

    @classmethod
    def from_json(cls, fields: object) -> "Base":
        """Rebuild a base from `to_json`.

        Raises:
            InputError: if a field is missing, unknown or ill-typed.
        """
        if not isinstance(fields, Mapping) or set(fields) != {"description", "tensors"}:
            raise InputError(f"a base has the fields description and tensors; got {fields!r}")
        description, tensors = fields["description"], fields["tensors"]
        if not isinstance(description, Mapping) or not isinstance(tensors, Mapping) or not tensors:
            raise InputError(f"a base has a description and at least one tensor; got {fields!r}")
        if not all(isinstance(path, str) for path in (*description, *tensors)):
            raise InputError("the names in a base must be strings")
        return cls(
            plain_json(description),
            {path: Fingerprint.from_json(value) for path, value in tensors.items()},
        )


def same_base(one: Base, other: Base) -> bool:
    """Tell whether two bases are of one model, as far as they say.

    Their descriptions are equal, and so are the fingerprints of the weights that are in both.
    """
    shared = one.tensors.keys() & other.tensors.keys()
    return one.description == other.description and all(
        one.tensors[path] == other.tensors[path] for path in shared
    )


def plain_json(values: Mapping[str, object]) -> dict[str, object]:
    """Return a deep copy that consists of plain JSON values.

    Raises:
        InputError: if a value has no JSON form.
    """
    try:
        copy = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the model's description has no JSON form: {error}") from error
    assert isinstance(copy, dict)
    return copy


def dtype_name(tensor: Tensor) -> str:
    """Return e.g. `float32`."""
    return str(tensor.dtype).removeprefix("torch.")


def bare(model: nn.Module) -> nn.Module:
    """Return the model itself, without the names that `attach` put around it."""
    return model.model if isinstance(model, HookedModel) else model


@dataclass(frozen=True)
class Reader:
    """A layer that an edit writes to.

    Attributes:
        path: of its weight in the bare model.
        module: a Linear or a 1x1 Conv2d.
        parameter: its weight.
        matrix: the weight as (outputs, width), sharing the parameter's memory.
    """

    path: str
    module: nn.Module
    parameter: nn.Parameter
    matrix: Tensor


def find_readers(model: nn.Module, weight_paths: tuple[str, ...] | list[str]) -> list[Reader]:
    """Return the layers of the bare `model` whose weights have these paths, each weight once.

    Raises:
        BaseMismatchError: if there is no such layer.
        UnsupportedModelError: if its weight is no plain parameter of a Linear or 1x1 Conv2d.
    """
    found: dict[int, Reader] = {}
    for path in weight_paths:
        owner, _, name = path.rpartition(".")
        try:
            module = model.get_submodule(owner)
        except AttributeError:
            raise BaseMismatchError(
                f"{type(model).__name__} has no layer '{owner}', where this edit writes; apply it "
                "to the model it was made for (for a wrapped model: to the model inside)"
            ) from None
        parameter = module._parameters.get(name)
        if parameter is None:
            raise UnsupportedModelError(
                f"'{path}' is no plain parameter of {type(module).__name__} (quantized, pruned or "
                "parametrized?), so writing to it would not last; remove the parametrization first"
            )
        matrix = _matrix(path, module, parameter.detach())
        found.setdefault(id(parameter), Reader(path, module, parameter, matrix))
    return list(found.values())


def _matrix(path: str, module: nn.Module, weight: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return weight
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1:
        return weight[:, :, 0, 0]
    raise UnsupportedModelError(
        f"'{path}' belongs to a {type(module).__name__}; only Linear and ungrouped 1x1 Conv2d "
        "layers can be edited"
    )
