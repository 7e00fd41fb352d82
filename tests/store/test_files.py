"""Files are whole or absent, and digests are those of the bytes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from salve_plugin.errors import WriteError
from salve_plugin.store.digest import sha256_file, sha256_tensor
from salve_plugin.store.files import write_atomically


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_gets_the_rights_of_any_new_file(tmp_path: Path) -> None:
    ours, plain = tmp_path / "ours", tmp_path / "plain"
    write_atomically(ours, b"x")
    plain.write_bytes(b"x")
    assert ours.stat().st_mode == plain.stat().st_mode


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"no-such-folder.*No such file"):
        write_atomically(tmp_path / "no-such-folder" / "file", b"x")


def test_when_the_disk_takes_no_more_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from salve_plugin.errors import WriteError\n"
        "from salve_plugin.store.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_atomically(Path(sys.argv[1]), b'x' * 5000)\n"
        "except WriteError as error:\n"
        "    print('refused', error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "refused" in result.stdout
    assert "5000 bytes" in result.stdout
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    expected = hashlib.sha256(tensor.T.contiguous().view(torch.uint8).numpy().tobytes())
    assert sha256_tensor(tensor.T) == expected.hexdigest()
    assert sha256_tensor(tensor.T) != sha256_tensor(tensor)


def test_scalars_and_empty_tensors_have_digests() -> None:
    assert sha256_tensor(torch.tensor(1.0)) == hashlib.sha256(b"\x00\x00\x80\x3f").hexdigest()
    assert sha256_tensor(torch.empty(0, 3)) == hashlib.sha256(b"").hexdigest()
