"""The same artifact is the same bytes and the same digest, wherever and whenever it is saved."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import small_artifacts
from fuzz_mutant import identity_of
from small_artifacts import contents, covered, small_artifact, small_edit

from salve_plugin.share.artifact import EditArtifact

GOLDEN_EDIT = "736a8eb624fdec536f6f0b51484e7db3f622f054e7f746fd14674bfa900dc0d9"
GOLDEN = "c2b1b111e176d914c2ac718e32bcda35d2b1412f5b320a087a73e3d5857bb933"
"""Digests of format 2. They will be in people's notes: a change breaks the format."""


def block(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def tensor(name: str, dtype: str, layout: str, rows: Sequence[Sequence[float]]) -> bytes:
    header = {"name": name, "dtype": dtype, "shape": [len(rows), len(rows[0])]}
    values = [value for row in rows for value in row]
    return block(canonical(header)) + block(struct.pack(f"<{len(values)}{layout}", *values))


def test_the_digest_is_what_the_documentation_says_computed_without_any_of_our_code() -> None:
    weight = struct.pack("<12f", 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4)
    site = {
        "name": "unembed.hook_in", "module": "fc", "side": "in", "layout": "pooled", "width": 4,
        "prefix_tokens": 0, "grid": None, "readers": ["fc"], "writers": [], "affine": [],
    }  # fmt: skip
    base = {"dtype": "float32", "shape": [3, 4], "sha256": hashlib.sha256(weight).hexdigest()}
    said: dict[str, object] = {
        "alpha_crit": None,
        "assessment": None,
        "data": {},
        "dictionary": {"at": None, "digest": "ab" * 32, "learner": None, "fields": None},
        "edit": {
            "base": {
                "description": {"architecture": "Tiny"}, "network": None, "state": None,
                "tensors": {"fc.weight": base},
            },
            "exactness": None,
            "operator": {"form": "gate", "mode": "suppress", "strength": 1.5},
            "provenance": {
                "dictionary": "ab" * 32, "kind": "latents", "latents": [5], "note": "",
            },
            "rows": [1, 2],
            "site": site,
            "targets": [{
                "affine": [], "bias": None, "outputs": None, "role": "reader", "view": "linear",
                "weight": "fc.weight",
            }],
        },
        "evaluation": None,
        "labels": None,
        "requires": ["gate"],
        "tensors": {"edit.directions": {"dtype": "F32", "shape": [1, 4]}},
    }  # fmt: skip
    data = block(canonical(said))
    data += tensor("edit.directions", "float32", "f", [(0.6, 0.0, -0.8, 0.0)])
    assert hashlib.sha256(data).hexdigest() == GOLDEN_EDIT == EditArtifact(small_edit()).digest


def test_the_digest_of_an_artifact_with_all_parts_is_what_it_always_was(tmp_path: Path) -> None:
    artifact = small_artifact()
    assert artifact.digest == GOLDEN
    assert identity_of(covered(artifact.save_pretrained(tmp_path))) == GOLDEN


SAVE = """
import sys, torch
torch.set_num_threads(int(sys.argv[2]))
from small_artifacts import small_artifact, small_dictionary_artifact
small_artifact().save_pretrained(sys.argv[1] + "/all")
small_dictionary_artifact("topk").save_pretrained(sys.argv[1] + "/dictionary")
"""
SURROUNDINGS = [
    {"PYTHONHASHSEED": "0", "LC_ALL": "C", "TZ": "UTC", "THREADS": "1"},
    {"PYTHONHASHSEED": "1", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu", "THREADS": "2"},
    {"PYTHONHASHSEED": "random", "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0", "THREADS": "3",
     "TZ": "America/St_Johns", "PYTHONOPTIMIZE": "2", "COLUMNS": "20"},
]  # fmt: skip


def saved_in(surroundings: dict[str, str], folder: Path) -> dict[str, bytes]:
    """Save in a process of its own, which has a folder of its own to work in."""
    folder.mkdir()
    path = os.pathsep.join([str(Path(small_artifacts.__file__).parent), *sys.path])
    subprocess.run(
        [sys.executable, "-c", SAVE, str(folder), surroundings["THREADS"]],
        env={**os.environ, **surroundings, "PYTHONPATH": path},
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return {
        f"{part}/{name}": data
        for part in ("all", "dictionary")
        for name, data in contents(folder / part).items()
    }


def test_every_process_saves_the_same_bytes(tmp_path: Path) -> None:
    one, *others = (
        saved_in(surroundings, tmp_path / str(number))
        for number, surroundings in enumerate(SURROUNDINGS)
    )
    assert len(one) == 7
    for other in others:
        assert other == one
    assert EditArtifact.verify(tmp_path / "0" / "all") == GOLDEN


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_saving_does_not_depend_on_what_was_there(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        fresh = small_artifact().save_pretrained(tmp_path / "fresh")
        EditArtifact(small_edit()).save_pretrained(tmp_path / "over")
        over = small_artifact().save_pretrained(tmp_path / "over")
    finally:
        os.umask(before)
    assert contents(over) == contents(fresh)
