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

GOLDEN_EDIT = "2b0dfeb549a19377a1d0cbb602e71ab281dc52b3d58129c5b38d56fd6665ef42"
GOLDEN = "87dcd8a6ce8ac2bc9d65fa5ff19548fd0e12df70d67f28b4fd6370a3234c8172"
"""Digests that version 0.1 wrote. They are in people's notes: a change breaks the format."""


def block(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def canonical(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def tensor(name: str, dtype: str, layout: str, values: Sequence[float]) -> bytes:
    header = {"name": name, "dtype": dtype, "shape": [len(values)]}
    return block(canonical(header)) + block(struct.pack(f"<{len(values)}{layout}", *values))


def test_the_digest_is_what_the_documentation_says_computed_without_any_of_our_code() -> None:
    weight = struct.pack("<12f", 1, 2, 3, 4, 5, 6, 7, 8, -1, -2, -3, -4)
    site = {
        "name": "unembed.hook_in", "module": "fc", "side": "in", "layout": "pooled", "width": 4,
        "prefix_tokens": 0, "grid": None, "readers": ["fc"], "writers": [],
    }  # fmt: skip
    base = {"dtype": "float32", "shape": [3, 4], "sha256": hashlib.sha256(weight).hexdigest()}
    said = {
        "alpha_crit": None,
        "base": {"description": {"architecture": "Tiny"}, "tensors": {"fc.weight": base}},
        "data": {},
        "dictionary": {"at": None, "digest": "ab" * 32, "learner": None, "fields": None},
        "edit": {
            "atom_norm": "unit", "latent": 5, "mode": "suppress", "operator": "scale",
            "rows": [1, 2], "site": site, "strength": 1.5,
        },
        "evaluation": None,
        "labels": None,
        "requires": ["scale"],
        "tensors": {"direction": {"dtype": "F32", "shape": [4]}},
    }  # fmt: skip
    data = block(canonical(said)) + tensor("direction", "float32", "f", (0.6, 0.0, -0.8, 0.0))
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
