"""Folders: read without links, written whole or not at all."""

import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from salve_plugin.errors import ArtifactError, WriteError
from salve_plugin.store.folders import replace_files
from salve_plugin.store.place import ExistingFolder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


OLD = {"a": b"old a", "b": b"old b", "last": b"old"}
NEW = {"a": b"new a", "c": b"new c", "last": b"new"}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    replace_files(tmp_path / "folder", OLD)
    return tmp_path / "folder"


def test_files_are_replaced_and_others_left_alone(old: Path) -> None:
    (old / "mine.txt").write_bytes(b"mine")
    replace_files(old, NEW, obsolete=["b"])
    assert contents(old) == {**NEW, "mine.txt": b"mine"}
    assert [path.name for path in old.iterdir() if path.is_dir()] == []


def test_new_files_have_the_permissions_that_the_user_would_give(old: Path) -> None:
    assert stat.S_IMODE((old / "a").stat().st_mode) & 0o044 == 0o044


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file's bytes and every folder (None) below a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


OLD_TREE = {"a/x": b"old a", "b/x": b"old b", "new/x": b"old", "last": b"old"}
NEW_TREE = {"a/x": b"new a", "replaced/deep/x": b"new c", "new/x": b"new", "last": b"new"}


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    replace_files(tmp_path / "folder", OLD_TREE)
    return tmp_path / "folder"


def test_files_in_subfolders_are_replaced_and_emptied_subfolders_removed(old_tree: Path) -> None:
    (old_tree / "a" / "mine").write_bytes(b"mine")
    replace_files(old_tree, NEW_TREE, obsolete=["b/x"])
    folders = {"a": None, "new": None, "replaced": None, "replaced/deep": None}
    assert tree(old_tree) == {**NEW_TREE, "a/mine": b"mine", **folders}
    replace_files(old_tree, {"last": b"last"}, obsolete=["a/x", "replaced/deep/x"])
    assert set(tree(old_tree)) == {"a", "a/mine", "last", "new", "new/x"}


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_failing_rename_leaves_the_old_files_and_subfolders(
    old_tree: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(old_tree)
    real, calls = os.replace, []

    def replace(source: object, target: object) -> None:
        if ".salve-" not in str(target):
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.EIO, "Input/output error")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WriteError, match="Input/output error"):
        replace_files(old_tree, NEW_TREE, obsolete=["b/x"])
    assert tree(old_tree) == before


def test_a_subfolder_that_is_a_file_or_a_link_is_neither_written_nor_read_through(
    tmp_path: Path,
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_bytes(b"secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(WriteError, match=r"\['a'\] are files or links"):
        replace_files(folder, NEW_TREE)
    with pytest.raises(ArtifactError, match="is a link"):
        ExistingFolder(folder).read("a/x", 10)
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    assert ExistingFolder(tmp_path / "outside").holds("x", entry)
    assert not ExistingFolder(folder).holds("a/x", entry)
    (folder / "a").unlink()
    (folder / "a").write_bytes(b"")
    with pytest.raises(WriteError, match=r"\['a'\] are files or links"):
        replace_files(folder, NEW_TREE)
    assert (tmp_path / "outside" / "x").read_bytes() == b"secret"


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failing_rename_leaves_the_old_files(
    old: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.replace, []

    def replace(source: object, target: object) -> None:
        if Path(str(target)).parent == old:
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.EIO, "Input/output error")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WriteError, match="Input/output error"):
        replace_files(old, NEW, obsolete=["b"])
    assert contents(old) == OLD


def test_without_hard_links_a_failure_is_taken_back_too(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    replace_files(old, NEW)
    assert contents(old) == {**OLD, **NEW}


WRITE_TOO_MUCH = """
import resource, sys
from pathlib import Path
from salve_plugin.errors import WriteError
from salve_plugin.store.folders import replace_files
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    replace_files(Path(sys.argv[1]), {"a": b"new a", "b": b"x" * 20_000, "last": b"new"})
except WriteError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_files_and_says_so(old: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, str(old)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert contents(old) == OLD
    assert {path.name for path in old.iterdir()} == set(OLD)


def test_a_name_that_is_a_folder_is_reported_before_anything_changes(old: Path) -> None:
    (old / "c").mkdir()
    with pytest.raises(WriteError, match="'c'"):
        replace_files(old, NEW)
    assert contents(old) == OLD


def test_a_path_below_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="cannot write"):
        replace_files(tmp_path / "file" / "folder", NEW)


def test_reading_refuses_links_pipes_folders_missing_and_long_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    read = ExistingFolder(tmp_path).read
    assert read("plain", 5) == b"12345"
    expected = {
        "link": "is a link",
        "dangling": "is a link",
        "pipe": "not a plain file",
        "folder": "not a plain file",
        "missing": "cannot read",
        # Answered by the system as a folder that may not be entered is.
        "x" * 300: "cannot read",
    }
    for name, message in expected.items():
        with pytest.raises(ArtifactError, match=message):
            read(name, 5)
    with pytest.raises(ArtifactError, match="more than the 4"):
        read("plain", 4)


KILLED_TWICE = """
import os, shutil, sys
from itertools import count
from pathlib import Path
from salve_plugin.store.folders import mend, replace_files

OLD = {"a": b"old a", "b": b"old b", "last": b"old"}
NEW = {"a": b"new a", "c": b"new c", "last": b"new"}
root, runs = Path(sys.argv[1]), 0
CALLS = [(os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "link"), (os, "mkdir")]


def dies_at(step, run):
    "Run in a process of its own that is gone before its call number `step`; say if it was."
    child = os.fork()
    if child == 0:
        steps = count()
        for module, name in CALLS:
            def call(*args, _real=getattr(module, name), **kwargs):
                if next(steps) == step:
                    os._exit(9)
                return _real(*args, **kwargs)
            setattr(module, name, call)
        run()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


for saving in count():
    started = root / f"{saving}"
    replace_files(started, OLD)
    if not dies_at(saving, lambda: replace_files(started, NEW, obsolete=["b"])):
        break
    for mending in count():
        folder = root / f"{saving}-{mending}"
        shutil.copytree(started, folder, symlinks=True)
        killed = dies_at(mending, lambda: mend(folder))
        mend(folder)
        runs += 1
        assert files(folder) in (OLD, NEW), (saving, mending, files(folder))
        assert not [p for p in folder.iterdir() if p.is_dir()], (saving, mending)
        if not killed:
            break
print(runs)
"""


def test_a_save_and_its_mending_may_both_be_killed_at_any_step(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_TWICE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="no file that refuses reading")
def test_a_file_that_cannot_be_read_is_not_what_an_entry_says() -> None:
    entry = {"size": Path("/proc/self/mem").stat().st_size, "sha256": "0" * 64}
    assert not ExistingFolder(Path("/proc/self")).holds("mem", entry)
