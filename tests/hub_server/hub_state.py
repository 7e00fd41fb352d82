"""What the server has: a folder with everything, and how it was started."""

from dataclasses import dataclass
from pathlib import Path

from hub_lfs import LargeFiles
from hub_repos import Repositories
from hub_xet import Xet


@dataclass(frozen=True)
class Sizes:
    """Limits of the real Hub that tests may lower."""

    large: int = 10_000_000
    """Files above this many bytes are large ones, whatever their name."""
    multipart: int = 8 << 20
    """Large files above this many bytes are sent in parts (LFS)."""
    part: int = 5 << 20
    page: int = 50
    """Commits, and files with their last commit, per answer; files without are 20 times more."""


@dataclass(frozen=True)
class Hub:
    """The state that the routes work on; all of it is found again in the folder after a restart."""

    url: str
    sizes: Sizes
    repositories: Repositories
    files: LargeFiles
    xet: Xet | None
    """None with `--no-xet`: an older Hub, whose large files are all LFS."""

    @classmethod
    def open(cls, root: Path, url: str, sizes: Sizes, xet: bool) -> "Hub":
        root.mkdir(parents=True, exist_ok=True)
        store = Xet(root / "xet") if xet else None
        return cls(url, sizes, Repositories(root), LargeFiles(root / "lfs"), store)

    def large_file(self, sha256: str) -> bytes | None:
        """Return the content of a large file, however it came.

        The real Hub serves files that were sent with Xet to clients without it, too.
        """
        data = self.files.read(sha256)
        if data is None and self.xet is not None:
            data = self.xet.rebuild(sha256)
            if data is not None:
                self.files.write(sha256, data)
        return data

    def has_large_file(self, sha256: str) -> bool:
        """Return whether a large file was sent, without reading it."""
        return self.files.has(sha256) or bool(self.xet and self.xet.hash_of(sha256))
