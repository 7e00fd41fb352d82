"""What a fuzzer makes of an artifact, and the digests that an attacker can compute, too."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from small_artifacts import CONFIG, SEAL, TENSORS, Files

Verdict = Literal["refused", "honest", "same"]
"""What reading must come to: an error; an error or the identity of what the files now hold; the
identity of the original, since only the layout was changed."""


@dataclass(frozen=True)
class Mutant:
    """A changed artifact.

    Attributes:
        files: by name.
        verdict: what reading must come to.
        arrange: does to a folder that holds the files what bytes cannot say (links, pipes); None
            where the files can stay in memory.
    """

    files: Files
    verdict: Verdict
    arrange: Callable[[Path], None] | None = None


Mutation = Callable[[Random, Files], Mutant]
"""Draws all that it draws from the generator, so that a seed gives the mutant again."""


def listed(config: dict[str, Any], files: Files) -> None:
    """Bring the manifest's sizes and digests of the other files up to date, if it has any."""
    entries = config.get("files")
    if isinstance(entries, dict):
        for name in entries:
            if name in files:
                digest = hashlib.sha256(files[name]).hexdigest()
                entries[name] = {"sha256": digest, "size": len(files[name])}


def sealed_text(text: bytes) -> bytes:
    """Return a manifest's text with the seal over it as the first line of the outermost object."""
    start, brace, rest = text.partition(b"{")
    digest = hashlib.sha256(start + brace + rest).hexdigest()
    return start + brace + f'\n  "{SEAL}": "{digest}",'.encode() + rest


def sealed(config: object) -> bytes:
    """Return the bytes of a manifest with a right seal; also of what no honest writer writes."""
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name != SEAL}
    text = json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False)
    return sealed_text((text + "\n").encode(errors="surrogatepass"))


def identity_of(files: Files) -> str:
    """Return the documented identity, computed with nothing but JSON, struct and SHA-256."""
    config = json.loads(files[CONFIG])
    left_out = ("digest", "files", "format_version", SEAL, "merged", "producer")
    state = hashlib.sha256()

    def block(data: bytes) -> None:
        state.update(len(data).to_bytes(8, "little") + data)

    def canonical(value: object) -> bytes:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    block(canonical({name: value for name, value in config.items() if name not in left_out}))
    data = files[TENSORS]
    start = 8 + int.from_bytes(data[:8], "little")
    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "I64": "int64",
    }
    for name, entry in sorted(json.loads(data[8:start]).items()):
        if name != "__metadata__":
            dtype, (first, last) = names[entry["dtype"]], entry["data_offsets"]
            block(canonical({"name": name, "dtype": dtype, "shape": entry["shape"]}))
            block(data[start + first : start + last])
    return state.hexdigest()


def resealed(config: dict[str, Any], files: Files) -> Files:
    """Return the files with a changed manifest and every digest right, where there can be one."""
    listed(config, files)
    try:
        draft = {**files, CONFIG: json.dumps(config).encode()}
        config = {**config, "digest": identity_of(draft)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # so malformed that it has no identity
    return {**files, CONFIG: sealed(config)}
