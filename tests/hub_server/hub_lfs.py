"""Large files of git LFS: the store and what `/_s3` and `/_cdn` stand for, S3 and its CDN.

The client asks `info/lfs/objects/batch` where to put a file, sends it there in one request or in
parts, without its token, and then asks the Hub to verify.
"""

import hashlib
from pathlib import Path

from hub_disk import write_whole
from hub_http import Answer, HubError, Request


class LargeFiles:
    """Files by SHA-256. A file that is there is whole and has this digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def has(self, sha256: str) -> bool:
        return (self._folder / sha256).exists()

    def size(self, sha256: str) -> int | None:
        return (self._folder / sha256).stat().st_size if self.has(sha256) else None

    def read(self, sha256: str) -> bytes | None:
        return (self._folder / sha256).read_bytes() if self.has(sha256) else None

    def write(self, sha256: str, data: bytes) -> None:
        """Keep a file.

        Raises:
            HubError: 400, if the digest is another: S3 compares it with what was announced.
        """
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, "The provided 'x-amz-content-sha256' does not match")
        write_whole(self._folder / sha256, data)

    def write_part(self, sha256: str, number: int, data: bytes) -> str:
        """Keep a part and return its ETag, which the client sends back to complete the file."""
        write_whole(self._folder / f"part-{sha256}-{number}", data)
        return hashlib.md5(data).hexdigest()

    def complete(self, sha256: str, numbers: list[int]) -> None:
        """Put the parts together.

        Raises:
            HubError: 400, if one is missing or the digest is wrong.
        """
        parts = [self._folder / f"part-{sha256}-{number}" for number in numbers]
        if not all(part.exists() for part in parts):
            raise HubError(400, "One or more of the specified parts could not be found")
        self.write(sha256, b"".join(part.read_bytes() for part in parts))
        for part in parts:
            part.unlink(missing_ok=True)


def refuse_token(request: Request) -> None:
    """Answer as S3 to a signed address with a token: the client must not have sent it.

    Raises:
        HubError: 400.
    """
    if request.headers.get("Authorization"):
        raise HubError(400, "Only one auth mechanism allowed")


def put_file(files: LargeFiles, request: Request, sha256: str, part: str | None) -> Answer:
    """`PUT /_s3/SHA[/PART]`: a file or a part of it."""
    refuse_token(request)
    if part is None:
        files.write(sha256, request.body)
        return Answer()
    tag = files.write_part(sha256, int(part), request.body)
    return Answer(headers={"ETag": f'"{tag}"'})


def complete_file(files: LargeFiles, request: Request, sha256: str) -> Answer:
    """`POST /_s3/SHA`: all parts were sent."""
    parts = request.json().get("parts", [])
    if not files.has(sha256):  # the client repeats a request whose answer was lost
        files.complete(sha256, [int(part["partNumber"]) for part in parts])
    return Answer()
