"""One job a folder: the other is told, and a dead one is in nobody's way."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from salve_plugin.errors import FolderInUseError, InputError, SalveError, WriteError
from salve_plugin.store.files import usable, write_atomically
from salve_plugin.store.folders import replace_files, save_into
from salve_plugin.store.lock import LOCK_FILE, locked
from salve_plugin.store.owner import Owner, make_scratch, scratch
from salve_plugin.store.place import FileChange


def test_a_second_thread_and_a_second_process_are_told_who_writes(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    code = (
        "import sys; from pathlib import Path; from salve_plugin.store.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('in')"
    )
    with locked(folder):
        with (
            pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on .* since"),
            locked(folder),
        ):
            pass
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
        )
        assert (
            f"FolderInUseError: {folder} is being written by process {os.getpid()}" in done.stderr
        )
    assert list(folder.iterdir()) == []
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "in\n"


def test_a_folder_that_was_made_for_nothing_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(InputError), locked(tmp_path / "a" / "b"):
        raise InputError("no")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_a_full_disk_does_not_take_is_in_nobodys_way(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(WriteError, match="File too large"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def of_dead_process() -> str:
    """The tag of a process that has ended."""
    code = "from salve_plugin.store.owner import Owner; print(Owner.this().tag())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_lock_is_taken_over_from_the_dead_and_from_nobody_else(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_FILE
    dead, this = of_dead_process(), Owner.this()
    again = f"{this.machine}-{this.boot}-{this.pid}-{this.started + 5}-00000000"  # a number reused
    for tag in (dead, again):
        lock.write_text(f"{tag}\nprocess\n")
        with locked(tmp_path):
            assert tag not in lock.read_text()
        assert not lock.exists()
    elsewhere = "0" * 8 + dead[8:]
    for text in (f"{elsewhere}\nprocess 7 on far\n", "somebody's own text", ""):
        lock.write_text(text)
        with pytest.raises(FolderInUseError, match=r"delete .*\.salve-lock"), locked(tmp_path):
            pass
        assert lock.read_text() == text
    lock.unlink()
    os.mkfifo(lock)  # reading it would wait for ever
    with pytest.raises(FolderInUseError), locked(tmp_path):
        pass
    lock.unlink()
    lock.touch()
    os.utime(lock, (0, 0))  # empty, and nobody is about to write it
    with locked(tmp_path):
        pass


def race(number: int, folder: Path, start: Any, results: Any) -> None:
    start.wait()
    try:
        save_into(folder, lambda _: FileChange(contents(number)))
        results.put("saved")
    except SalveError as error:
        results.put(type(error).__name__)


def contents(number: int) -> dict[str, bytes]:
    return {name: f"{number} {name}".encode() * 50 for name in ("a", "b/c", "last")}


def test_of_two_savers_one_wins_and_the_folder_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    outcomes: Counter[str] = Counter()
    for trial in range(12):
        start, results = context.Barrier(3), context.Queue()
        folder = tmp_path / str(trial)
        jobs = [context.Process(target=race, args=(n, folder, start, results)) for n in range(3)]
        for job in jobs:
            job.start()
        ended = [results.get(timeout=60) for _ in jobs]
        for job in jobs:
            job.join()
        outcomes.update(ended)
        assert "saved" in ended
        found = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        assert found in [contents(n) for n in range(3)]
    assert set(outcomes) <= {"saved", "FolderInUseError"}


KILLED = """
import os, signal, sys
from pathlib import Path
from salve_plugin.store.folders import save_into
from salve_plugin.store.place import FileChange
folder, after = Path(sys.argv[1]), int(sys.argv[2])
real, moved = os.replace, []
def replace(source, target):
    if ".salve-" not in str(target):
        if len(moved) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(target)
    real(source, target)
os.replace = replace
files = {name: b"new " + name.encode() for name in ("a/x", "d/e/x", "last")}
save_into(folder, lambda _: FileChange(files, ["b/x"]))
"""
OLD = {"a/x": b"old a/x", "b/x": b"old b/x", "last": b"old last"}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("after", [0, 1, 2])
def test_the_next_save_finds_the_folder_as_it_was_before_a_kill(tmp_path: Path, after: int) -> None:
    replace_files(tmp_path, OLD)
    (tmp_path / ".salve-mine").mkdir()
    (tmp_path / ".salve-mine" / "notes").write_bytes(b"mine")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(after)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(tree(tmp_path)) > len(OLD) + 1
    seen = {}

    def planned(existing: object) -> FileChange:
        seen.update(tree(tmp_path))
        return FileChange({"mine": b"x"})

    save_into(tmp_path, planned)
    seen.pop(LOCK_FILE)
    assert seen == {**OLD, ".salve-mine/notes": b"mine"}
    assert tree(tmp_path) == {**seen, "mine": b"x"}


def test_copies_of_the_living_and_journals_that_lead_elsewhere_do_no_harm(tmp_path: Path) -> None:
    living = tmp_path / f".salve-{Owner.this().tag()}"
    living.mkdir()
    folder = tmp_path / "folder"
    (tmp_path / "outside").write_bytes(b"outside")
    staging = folder / f".salve-{of_dead_process()}"
    (staging / "new").mkdir(parents=True)
    (staging / "new" / "last").write_bytes(b"")
    names = {"names": ["../outside", "last"], "obsolete": []}
    (staging / "journal.json").write_text(json.dumps(names))
    for each in (tmp_path, folder):
        save_into(each, lambda _: FileChange({"file": b"x"}))
    assert living.is_dir()
    assert (tmp_path / "outside").read_bytes() == b"outside"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_what_a_killed_process_left_in_the_place_for_temporary_files_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"salve-model-{of_dead_process()}"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x")
    (tmp_path / "salve-model-of-somebody").mkdir()
    kept = make_scratch("activations")
    with scratch("model") as folder:
        assert folder.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, "salve-model-of-somebody"}


def test_an_unfinished_file_of_a_dead_process_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / f".salve-{of_dead_process()}").write_bytes(b"half")
    (tmp_path / f".salve-{Owner.this().tag()}").write_bytes(b"being written")
    write_atomically(tmp_path / "file", b"x")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-pipe").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), ("folder", "folder"), ("to-pipe", "pipe")):
        with pytest.raises(WriteError, match=f"is a (named )?{kind}, not a file"):
            write_atomically(tmp_path / name, b"x")
        with pytest.raises(WriteError, match=r"folders|is a named pipe, not a file"):
            replace_files(tmp_path, {name: b"x"})
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "to-pipe").is_symlink()


def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(mask: int) -> int:
        raise AssertionError("the umask is of all threads")

    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", forbidden)
        threads = [
            threading.Thread(target=write_atomically, args=(tmp_path / str(n), b"x"))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_an_empty_name_is_not_taken_for_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is no path"):
        save_into("", lambda _: FileChange({"file": b"x"}))
    assert not list(tmp_path.iterdir())
    save_into(".", lambda _: FileChange({"file": b"x"}))
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a" * 300, "x\0y", "x\ud800y"])
def test_names_that_no_file_can_have_are_refused_in_printable_words(
    tmp_path: Path, name: str
) -> None:
    path = f"{tmp_path}/{name}"
    calls: list[Callable[[], object]] = [
        lambda: usable(path),
        lambda: write_atomically(Path(path), b""),
        lambda: save_into(path, lambda _: FileChange({})),
    ]
    for call in calls:
        with pytest.raises(SalveError) as caught:
            call()
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()


def test_a_name_of_the_longest_length_can_be_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("é" * 127), b"x")
