"""Whose a lock or an unfinished copy is, told by its name, and whether that process still runs."""

import hashlib
import os
import platform
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from salve_plugin.errors import WriteError

TAG = r"[0-9a-f]{8}-[0-9a-f]{8}-[0-9]{1,10}-[0-9]{1,20}-[0-9a-f]{8}"
OURS = re.compile(rf"\.salve-({TAG})")
"""Names of files and folders that are being written."""
SCRATCH = re.compile(rf"salve-[a-z]+-({TAG})")
"""Names of folders in the system's place for temporary files."""


@dataclass(frozen=True)
class Owner:
    """A process of some machine.

    Attributes:
        machine: short digest of what identifies the machine and its name space of processes.
        boot: short digest of what changes whenever that machine starts.
        pid: number of the process.
        started: when it started, in ticks since then; 0 if the system does not say.
    """

    machine: str
    boot: str
    pid: int
    started: int

    @classmethod
    def this(cls) -> "Owner":
        """Return this process."""
        pid = os.getpid()
        return cls(*_machine(), pid, _started(pid) or 0)

    def tag(self) -> str:
        """Return a new name of something that the process makes."""
        token = secrets.token_hex(4)
        return f"{self.machine}-{self.boot}-{self.pid}-{self.started}-{token}"

    @classmethod
    def of_tag(cls, tag: str) -> "Owner | None":
        """Return the process that made a name; None if it is no such name."""
        if re.fullmatch(TAG, tag) is None:
            return None
        machine, boot, pid, started, _ = tag.split("-")
        return cls(machine, boot, int(pid), int(started))

    def is_dead(self) -> bool:
        """Tell whether the process has certainly ended: nothing is known of other machines."""
        machine, boot = _machine()
        # On Windows, `os.kill` with 0 is no question: it sends Ctrl-C.
        if self.machine != machine or sys.platform == "win32":
            return False
        if self.boot != boot:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):  # somebody else's process, or no number of one
            return False
        # Numbers of processes are used again, times of start are not.
        started = _started(self.pid)
        return started is not None and bool(self.started) and started != self.started


@cache
def _machine() -> tuple[str, str]:
    """Return digests of the machine and of its last start."""
    space = ""
    with suppress(OSError):
        # Two containers of one machine count their processes separately.
        space = os.readlink("/proc/self/ns/pid")
    identity, boot = _line("/etc/machine-id"), _line("/proc/sys/kernel/random/boot_id")
    # Without an identity, two machines of one name could not be told from one that started anew.
    machine = f"{platform.node()} {identity or boot} {space}"
    return _short(machine), _short(boot)


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """Return when a process started; -1 if it has ended but was not waited for, None if unknown."""
    try:
        # The second field, the program's name in brackets, may hold spaces and brackets itself. Of
        # those after it the first is the state (Z, X: ended), the twentieth the time of start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def dead_entries(folder: Path, names: re.Pattern[str] = OURS) -> list[Path]:
    """Return what ended processes left in a folder unfinished, told by its names."""
    left = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = names.fullmatch(entry.name)
            owner = match and Owner.of_tag(match[1])
            if owner and owner.is_dead():
                left.append(Path(entry.path))
    return left


def make_scratch(kind: str) -> Path:
    """Make a folder for temporary files, and remove those of this user's ended processes.

    Args:
        kind: a word for its name.

    Raises:
        WriteError: if it cannot be made.
    """
    try:
        parent = Path(tempfile.gettempdir())
        for left in dead_entries(parent, SCRATCH):
            with suppress(OSError):
                # The place for temporary files is everybody's: only this user's folders are
                # removed, and no link is followed.
                if left.lstat().st_uid == os.getuid() and not left.is_symlink():
                    shutil.rmtree(left, ignore_errors=True)
        folder = parent / f"salve-{kind}-{Owner.this().tag()}"
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise WriteError(
            f"no temporary folder can be made: {error}; free some space or set TMPDIR"
        ) from error
    return folder


@contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Make such a folder for as long as the context lasts.

    Raises:
        WriteError: if it cannot be made.
    """
    folder = make_scratch(kind)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
