"""Mutations of bytes by somebody who cannot or does not compute digests: all are refused."""

import io
import pickle
import zipfile
from collections.abc import Callable
from random import Random

import torch
from fuzz_form import tensors_name
from fuzz_mutant import Mutant, Mutation
from small_artifacts import Files

Edit = Callable[[Random, bytes], bytes]


def _flip(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    noise = rng.randbytes(rng.randint(1, 64))
    return data[:start] + noise + data[start + len(noise) :]


def _insert(rng: Random, data: bytes) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]


def _delete(rng: Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _append(rng: Random, data: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\n", b" ", data, rng.randbytes(100)))


def _swap(rng: Random, data: bytes) -> bytes:
    a, b, c, d = sorted(rng.randint(0, len(data)) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def _space(rng: Random, data: bytes) -> bytes:
    """Change what is white space in JSON, which parsing alone would not notice."""
    places = [at for at, byte in enumerate(data) if byte in b" \n"]
    at = rng.choice(places) if places else 0
    return data[:at] + rng.choice((b"\r\n", b"\t", b"  ", b"")) + data[at + 1 :]


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


def _another_format(rng: Random, data: bytes) -> bytes:
    saved, zipped = io.BytesIO(), io.BytesIO()
    torch.save({"direction": torch.ones(4)}, saved)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
    kinds = (
        saved.getvalue(), zipped.getvalue(), pickle.dumps(_Evil()), b"", b"\0" * len(data), b"{}",
        b"[]", b"null", b"<html><body>502 Bad Gateway</body></html>", b"version https://git-lfs",
        b"\x1f\x8b\x08" + data, b"\xef\xbb\xbf" + data,
        data.decode("latin-1").encode("utf-16"), data + zipped.getvalue(),
    )  # fmt: skip
    return rng.choice(kinds)


def _on_any_file(edit: Edit) -> Mutation:
    def mutation(rng: Random, files: Files) -> Mutant:
        name = rng.choice(sorted(files))
        changed = edit(rng, files[name])
        while changed == files[name]:
            changed = _flip(rng, changed)
        return Mutant({**files, name: changed}, "refused")

    return mutation


def _exchanged(rng: Random, files: Files) -> Mutant:
    one, other = rng.sample(sorted(files), 2)
    return Mutant({**files, one: files[other], other: files[one]}, "refused")


def _tensors_of_zeros(rng: Random, files: Files) -> Mutant:
    """Keep the header, so that everything parses."""
    name = tensors_name(files)
    data = files[name]
    start = 8 + int.from_bytes(data[:8], "little")
    return Mutant({**files, name: data[:start] + bytes(len(data) - start)}, "refused")


EDITS = {
    "flip": _flip, "overwrite": _overwrite, "insert": _insert, "delete": _delete,
    "truncate": _truncate, "append": _append, "swap": _swap, "space": _space,
    "another format": _another_format,
}  # fmt: skip

OF_ANY_FILE: dict[str, Mutation] = {
    **{f"bytes: {name}": _on_any_file(edit) for name, edit in EDITS.items()},
    "bytes: files exchanged": _exchanged,
}
MUTATIONS: dict[str, Mutation] = {
    **OF_ANY_FILE,
    "bytes: tensors of zeros": _tensors_of_zeros,
}
