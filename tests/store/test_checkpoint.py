"""Files of weights that are damaged: refused as such, whatever is wrong with them."""

import argparse
import io
import zipfile
from pathlib import Path

import pytest
import torch

from salve_plugin.errors import ReadError
from salve_plugin.store.checkpoint import load_state


def repacked(compression: int) -> bytes:
    """Return a checkpoint with a pickled object, packed as torch does not."""
    saved, packed = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.arange(6.0), "args": argparse.Namespace(rate=0.1)}, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(packed, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return packed.getvalue()


def with_entries(data: bytes, offset: int, value: int) -> bytes:
    """Return a zip file with two bytes of every entry's place in the directory replaced."""
    parts = data.split(b"PK\x01\x02")
    changed = [part[:offset] + value.to_bytes(2, "little") + part[offset + 2 :] for part in parts]
    return b"PK\x01\x02".join([parts[0], *changed[1:]])


def test_packed_checkpoints_that_are_damaged_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    packed = repacked(zipfile.ZIP_DEFLATED)
    start = packed.index(b"data.pkl") + len(b"data.pkl")
    damaged = [
        *(packed[:place] + b"\xff" * 8 + packed[place + 8 :] for place in range(start, start + 99)),
        with_entries(packed, 4, 1),  # encrypted
        with_entries(packed, 6, 97),  # compressed in an unknown way
    ]
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(ReadError, match="cannot read the weights in"):
            load_state(file)
