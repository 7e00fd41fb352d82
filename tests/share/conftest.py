"""Small artifacts that the tests of sharing have in common."""

import struct
import zlib

import pytest
import torch

from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.site import HEAD_INPUT, Site

WEIGHT = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [-1, -2, -3, -4]])


@pytest.fixture
def png() -> bytes:
    """A picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\x00\x80")
    body = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def tiny_edit() -> Edit:
    """An edit of rows 1 and 2 of a 3x4 head."""
    return Edit(
        site=Site(HEAD_INPUT, "fc", "in", "pooled", 4, readers=("fc",)),
        operator="scale",
        mode="suppress",
        latent=5,
        direction=torch.tensor([0.6, 0.0, -0.8, 0.0]),
        strength=1.5,
        rows=(1, 2),
        base=Base({"architecture": "Tiny"}, {"fc.weight": Fingerprint.of(WEIGHT)}),
        dictionary_digest="ab" * 32,
    )


@pytest.fixture
def tiny_crit() -> AlphaCrit:
    """Four images: two classes, one root, one without, one there already, one more root."""
    values = torch.tensor([1.25, torch.inf, 0.0, 2.5], dtype=torch.float64)
    return AlphaCrit(
        values=values,
        linear=torch.tensor([1.25, 9.0, 0.0, 2.0], dtype=torch.float64),
        labels=torch.tensor([1, 1, 2, 2]),
        predicted=torch.tensor([1, 1, 0, 2]),
        target="zero",
        fraction=0.5,
        against="label",
    )


@pytest.fixture
def tiny(tiny_edit: Edit, tiny_crit: AlphaCrit, png: bytes) -> EditArtifact:
    """An artifact of three kilobytes with every optional part but the dictionary."""
    return EditArtifact(
        tiny_edit,
        alpha_crit=tiny_crit,
        pristine={"fc.weight": WEIGHT[1:]},
        evaluation={"before": {"accuracy of ü|x": 0.75}, "after": {"accuracy of ü|x": 0.25}},
        pictures={"heat_map": png},
        labels=("a", "ü|x", "<b>"),
        data={"name": "four images", "count": 4, "split": None},
    )
