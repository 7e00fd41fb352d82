"""What a fuzzer makes of an artifact, and the digests that an attacker can compute, too."""

import hashlib
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from fuzz_form import Form, form_of
from safetensors import SafetensorError
from small_artifacts import SEAL, Files

Verdict = Literal["refused", "honest", "same"]
"""What reading must come to: an error; an error or the identity of what the files now hold; the
identity of the original, since only the layout was changed."""


@dataclass(frozen=True)
class Mutant:
    """A changed edit, bundle or dictionary.

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


def listed(config: object, files: Files) -> None:
    """Bring the manifest's sizes and digests of the other files up to date, if it has any."""
    entries = form_of(files).own(config).get("files")
    if isinstance(entries, dict):
        for name in entries:
            if name in files:
                digest = hashlib.sha256(files[name]).hexdigest()
                entries[name] = {"sha256": digest, "size": len(files[name])}


def sealed_text(text: bytes, form: Form) -> bytes:
    """Return a manifest's text with the seal over it as the first line of its object."""
    start, opening, rest = text.partition(form.opening)
    digest = hashlib.sha256(start + opening + rest).hexdigest()
    indent = "  " * (len(form.path) + 1)
    return start + opening + f'\n{indent}"{SEAL}": "{digest}",'.encode() + rest


def sealed(config: object, form: Form) -> bytes:
    """Return the bytes of a manifest with a right seal; also of what no honest writer writes."""
    config = deepcopy(config)
    form.own(config).pop(SEAL, None)
    text = json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False)
    return sealed_text((text + "\n").encode(errors="surrogatepass"), form)


def identity_of(files: Files) -> str:
    """Return the documented identity of what the files hold."""
    return form_of(files).identity(files)


def resealed(config: object, files: Files) -> Files:
    """Return the files with a changed manifest and every digest right, where there can be one."""
    form = form_of(files)
    listed(config, files)
    malformed = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    try:
        draft = {**files, form.manifest: json.dumps(config).encode()}
        form.own(config)["digest"] = identity_of(draft)
    except (*malformed, SafetensorError, RuntimeError, UserWarning):  # the latter two of torch
        pass  # so malformed that it has no identity
    return {**files, form.manifest: sealed(config, form)}
