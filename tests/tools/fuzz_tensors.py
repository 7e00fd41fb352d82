"""Mutations of the tensor file by an attacker who computes every digest anew."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from random import Random
from typing import Any

import safetensors.torch
import torch
from fuzz_form import form_of, tensors_name
from fuzz_mutant import Mutant, Mutation, resealed
from small_artifacts import Files
from torch import Tensor

Header = dict[str, Any]
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def _split(data: bytes) -> tuple[Header, bytes]:
    start = 8 + int.from_bytes(data[:8], "little")
    header: Header = json.loads(data[8:start])
    return header, data[start:]


def _joined(header: object, data: bytes, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _with(files: Files, tensors: bytes) -> Files:
    """Return the files with another tensor file, all digests and the manifest's list right."""
    config = json.loads(files[form_of(files).manifest])
    try:
        header, _ = _split(tensors) if "tensors" in config else ({}, b"")
        listed = {
            name: {"dtype": entry["dtype"], "shape": entry["shape"]}
            for name, entry in header.items()
            if name != "__metadata__"
        }
        config |= {"tensors": listed} if "tensors" in config else {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # no header that a manifest could follow
    return resealed(config, {**files, tensors_name(files): tensors})


def _entry(rng: Random, files: Files) -> Mutant:
    """Change one tensor's entry in the header."""
    header, data = _split(files[tensors_name(files)])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, size = header[name], len(data)
    first, last = entry["data_offsets"]
    changes: list[dict[str, Any]] = [
        {"data_offsets": offsets}
        for offsets in (
            [last, first], [first, last + 8], [first - 8, last], [-8, last], [0, size],
            [first, 2**63],
            [2**64, 2**64 + 8], [first], [], [first, last, last], None, "0", [str(first), last],
            [float(first), last], [True, last], {"0": first}, [size, size], [first + 8, last + 8],
        )
    ] + [
        {"shape": shape}
        for shape in (
            [], [0], [-1], [2**53], [2**32, 2**32], [0, 2**53], [1] * 9, [1] * 1000, None, 4, "4",
            [4.0], [None], [[4]], [*entry["shape"], 2], [2**53] * 8, [2**62, 4], [-2, -2],
        )
    ] + [
        {"dtype": dtype}
        for dtype in (
            "F8_E4M3", "BOOL", "U8", "I32", "C64", "f32", "", None, 7, ["F32"], "torch.float32",
            "O", "object", "F32\0", "F128",
        )
    ] + [{"more": 1}, {"__class__": "os.system"}]  # fmt: skip
    change = rng.choice([change for change in changes if {**entry, **change} != entry])
    header[name] = {**entry, **change}
    return Mutant(_with(files, _joined(header, data)), "refused")


def _header(rng: Random, files: Files) -> Mutant:
    """Change the header as a whole."""
    header, data = _split(files[tensors_name(files)])
    names = [name for name in header if name != "__metadata__"]
    text = json.dumps(header).encode()
    one = header[names[0]]
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    offset = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    deep = b"[" * rng.choice((17, 1_000, 500_000))
    # Made when chosen: some are large.
    variants: list[Callable[[], bytes]] = [
        partial(_joined, text, data, length=length)
        for length in (0, 1, 7, len(text) - 1, len(text) + 1, 2**20, 2**31, 2**32, 2**63, 2**64 - 1)
    ] + [
        partial(_joined, {**header, "__metadata__": metadata}, data)
        for metadata in (
            {}, None, {"format": "tf"}, {"format": "pt", "more": "1"}, "pt", {"format": ["pt"]},
            {"Format": "pt"}, {"format": "pt\0"},
        )
    ] + [
        partial(_joined, {name: header[name] for name in names}, data),
        lambda: _joined({**header, **{f"x{at}": nothing for at in range(100_000)}}, data),
        lambda: _joined({**header, **{f"dictionary.x{at}": nothing for at in range(5_000)}}, data),
        lambda: _joined({**header, **{f"pristine.x{at}": nothing for at in range(1_000)}}, data),
        partial(_joined, {**header, "edit.direction\n": nothing}, data),
        partial(_joined, {**header, "../x": offset}, data + b"\0\0\0\0"),
        partial(_joined, {**header, "alpha_crit.__class__": offset}, data + b"\0\0\0\0"),
        partial(_joined, {**header, "x" * 900_000: nothing}, data),
        partial(_joined, {**header, "dictionary.alias": one}, data),
        partial(_joined, text[:-1] + f', "{names[0]}": {json.dumps(one)}}}'.encode(), data),
        partial(_joined, text[:-1] + b', "x": ' + deep, data),
        partial(_joined, text[:-1] + b', "x": NaN}', data),
        partial(_joined, b"\xef\xbb\xbf" + text, data),
        partial(_joined, b"[" + text + b"]", data),
        partial(_joined, b"null", data),
        partial(_joined, b"", data),
        partial(_joined, text, data + b"\0"),
        partial(_joined, text, data[:-1]),
        partial(_joined, text, b""),
        partial(_joined, text + b"{}", data),
        partial(_joined, b"\0" * 1_000, data),
    ]  # fmt: skip
    return Mutant(_with(files, rng.choice(variants)()), "refused")


def _layout(rng: Random, files: Files) -> Mutant:
    """Write the same tensors in another order and with another spacing: the same artifact."""
    header, data = _split(files[tensors_name(files)])
    names = [name for name in header if name != "__metadata__"]
    rng.shuffle(names)
    moved: Header = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    for name in names:
        first, last = header[name]["data_offsets"]
        at = sum(map(len, parts))
        parts.append(data[first:last])
        moved[name] = {**header[name], "data_offsets": [at, at + last - first]}
    text = json.dumps(moved, indent=rng.choice((None, 1, 2))).encode()
    text += b" " * (-len(text) % 8)
    return Mutant(_with(files, _joined(text, b"".join(parts))), "same")


def _set(value: float) -> Callable[[Random, Tensor], Tensor]:
    def change(rng: Random, tensor: Tensor) -> Tensor:
        flat = tensor.flatten()
        flat[rng.randrange(len(flat))] = (
            value if tensor.is_floating_point() else int(min(value, 2.0**62))
        )
        return flat.reshape(tensor.shape)

    return change


def _ulp(rng: Random, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor + 1
    flat = tensor.flatten()
    at = rng.randrange(len(flat))
    flat[at] = torch.nextafter(flat[at], torch.full_like(flat[at], 2.0))
    return flat.reshape(tensor.shape)


def _cast(rng: Random, tensor: Tensor) -> Tensor:
    return tensor.to(rng.choice([dtype for dtype in _NAMES if dtype != tensor.dtype]))


SPOILED = {"nan": _set(float("nan")), "inf": _set(float("inf")), "-inf": _set(-float("inf"))}
CHANGED: dict[str, Callable[[Random, Tensor], Tensor]] = {
    "denormal": _set(1e-40), "huge": _set(3e38), "negative": _set(-7), "label": _set(2**62),
    "zero": lambda _, tensor: tensor * 0, "double": lambda _, tensor: tensor * 2,
    "sign": lambda _, tensor: -tensor, "ulp": _ulp, "cast": _cast,
    "reverse": lambda _, tensor: tensor.flip(0), "axis": lambda _, tensor: tensor[None],
    "flat": lambda _, tensor: tensor.flatten()[:1].reshape(()),
    "shorter": lambda _, tensor: tensor[:-1], "none": lambda _, tensor: tensor[:0],
    "longer": lambda _, tensor: torch.cat([tensor, tensor]),
    "turned": lambda _, tensor: tensor.T if tensor.ndim == 2 else tensor.roll(1),
}  # fmt: skip


def _saved(tensors: dict[str, Tensor]) -> bytes:
    plain = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    data: bytes = safetensors.torch.save(plain, metadata={"format": "pt"})
    return data


def _spoiled(rng: Random, files: Files) -> Mutant:
    """Put a number where there must be none: NaN anywhere, an infinity that is no strength."""
    tensors = safetensors.torch.load(files[tensors_name(files)])
    kind = rng.choice(sorted(SPOILED))
    floats = [
        name
        for name, tensor in sorted(tensors.items())
        if tensor.is_floating_point() and (kind != "inf" or not name.startswith("alpha_crit."))
    ]
    name = rng.choice(floats)
    tensors[name] = SPOILED[kind](rng, tensors[name])
    return Mutant(_with(files, _saved(tensors)), "refused")


def _changed(rng: Random, files: Files) -> Mutant:
    """Change one or two tensors: refused, or another artifact."""
    tensors = safetensors.torch.load(files[tensors_name(files)])
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(sorted(tensors))
        if tensors[name].ndim and len(tensors[name]):
            tensors[name] = CHANGED[rng.choice(sorted(CHANGED))](rng, tensors[name])
    return Mutant(_with(files, _saved(tensors)), "honest")


def _named(rng: Random, files: Files) -> Mutant:
    """Remove, add, rename or exchange tensors."""
    tensors = safetensors.torch.load(files[tensors_name(files)])
    name, other = rng.choice(sorted(tensors)), rng.choice(sorted(tensors))
    new = rng.choice((
        "direction", "alpha_crit.values", "alpha_crit.more", "pristine.fc.bias", "pristine.",
        "pristine..", "dictionary.atoms", "dictionary.__class__", "Direction", "direction ", "",
    ))  # fmt: skip
    match rng.randrange(4):
        case 0:
            del tensors[name]
        case 1:
            tensors[new] = deepcopy(tensors[name])
        case 2:
            tensors[new] = tensors.pop(name)
        case _:
            tensors[name], tensors[other] = tensors[other], tensors[name]
    return Mutant(_with(files, _saved(tensors)), "honest")


MUTATIONS: dict[str, Mutation] = {
    "tensors: header entry": _entry,
    "tensors: header": _header,
    "tensors: layout changed": _layout,
    "tensors: not finite": _spoiled,
    "tensors: values": _changed,
    "tensors: names": _named,
}
