"""The content store of Xet (CAS), which `hf_xet` uploads to and downloads from.

The client cuts files into chunks, packs chunks into xorbs, and describes in shards which chunks of
which xorbs make a file. Xorbs and shards are kept as they came. A download asks for the
reconstruction of a file and then reads ranges of xorbs.
"""

import hashlib
import itertools
import re
import struct
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_disk import write_whole
from hub_faults import Faults, Log
from hub_http import Answer, HubError, Request, Server, answer_file, answer_json

READ_TOKEN, WRITE_TOKEN = "xet-read", "xet-write"
LIFETIME = 3600  # seconds
CAS = re.compile("/v1/(xorbs|shards|reconstructions|xorb)(?:/(?:default/)?([0-9a-f]{64}))?")


@dataclass(frozen=True)
class Term:
    """Consecutive chunks of a xorb that follow each other in a file, too."""

    xorb: str
    length: int
    start: int
    end: int


@dataclass(frozen=True)
class File:
    """What a shard says of a file."""

    sha256: str | None
    terms: tuple[Term, ...]


class Xet:
    """Xorbs and shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self._xorbs, self._shards = folder / "xorbs", folder / "shards"
        self._files: dict[str, File] = {}
        self._hashes: dict[str, str] = {}
        for kept in (self._xorbs, self._shards):
            kept.mkdir(parents=True, exist_ok=True)
        for shard in self._shards.glob("[!.]*"):
            self._learn(shard.read_bytes())

    def _learn(self, shard: bytes) -> None:
        for name, file in read_shard(shard).items():
            self._files[name] = file
            if file.sha256:
                self._hashes[file.sha256] = name

    def hash_of(self, sha256: str) -> str | None:
        """Return Xet's name of a file, None if it did not come by Xet."""
        return self._hashes.get(sha256)

    def size(self, sha256: str) -> int | None:
        name = self.hash_of(sha256)
        return sum(term.length for term in self._files[name].terms) if name else None

    def rebuild(self, sha256: str) -> bytes | None:
        """Return the content of a file, None if it did not come by Xet.

        `hf_xet` unpacks it as a client of this store, which is served to it apart from what the
        tests count and break.
        """
        name = self.hash_of(sha256)
        if name is None:
            return None
        import hf_xet

        server, end = Server(0, self.serve, self.serve, Faults(), Log()), time.time() + LIFETIME
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "file"
                with hf_xet.XetSession().new_file_download_group(
                    endpoint=f"http://127.0.0.1:{server.server_address[1]}",
                    token=READ_TOKEN,
                    token_expiry_unix_secs=int(end),
                ) as group:
                    group.start_download_file(hf_xet.XetFileInfo(name, None), str(path))
                return path.read_bytes()
        finally:
            server.shutdown()
            server.server_close()

    def serve(self, request: Request) -> Answer:
        """Answer a request to `/v1/...`. Newer versions of the API, asked for first, are not there.

        Raises:
            HubError: 404 for anything else.
        """
        match, reading = CAS.fullmatch(request.path), request.method == "GET"
        if match and not reading and match[1] in ("xorbs", "shards"):
            return self.put(request, match[1], match[2])
        if match and reading and match[1] == "xorb":
            return self.xorb(request, match[2])
        if match and reading and match[1] == "reconstructions":
            return self.reconstruction(request, match[2])
        raise HubError(404, "Not found")

    def put(self, request: Request, what: str, name: str | None) -> Answer:
        """`POST /v1/xorbs/default/HASH` and `POST /v1/shards`."""
        _check(request, WRITE_TOKEN)
        folder = self._xorbs if what == "xorbs" else self._shards
        path = folder / (name or hashlib.sha256(request.body).hexdigest())
        new = not path.exists()
        write_whole(path, request.body)
        if what == "xorbs":
            return answer_json({"was_inserted": new})
        self._learn(request.body)
        return answer_json({"result": int(new)})

    def xorb(self, request: Request, name: str) -> Answer:
        """`GET /v1/xorb/HASH`: the signed address of a reconstruction; ranges of it are read."""
        path = self._xorbs / name
        if not path.exists():
            raise HubError(404, "Not found")
        return answer_file(request, path.read_bytes(), {})

    def reconstruction(self, request: Request, name: str) -> Answer:
        """`GET /v1/reconstructions/HASH`: which ranges of which xorbs make a range of the file."""
        _check(request, READ_TOKEN)
        file = self._files.get(name)
        if file is None:
            raise HubError(404, "Not found")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "bytes=0-"))
        first, last = (int(match[1]), int(match[2] or 1 << 60)) if match else (0, 1 << 60)
        starts = list(itertools.accumulate((term.length for term in file.terms), initial=0))
        if first >= starts[-1]:
            raise HubError(416, "Range Not Satisfiable")
        chosen = [
            (start, term)
            for start, term in zip(starts, file.terms, strict=False)
            if start + term.length > first and start <= last
        ]
        return answer_json(
            {
                "offset_into_first_range": max(0, first - chosen[0][0]),
                "terms": [
                    {
                        "hash": term.xorb,
                        "unpacked_length": term.length,
                        "range": {"start": term.start, "end": term.end},
                    }
                    for _, term in chosen
                ],
                "fetch_info": {
                    xorb: [
                        {**place, "url": f"{_address(request)}/v1/xorb/{xorb}"}
                        for place in self._places(xorb, [t for _, t in chosen if t.xorb == xorb])
                    ]
                    for xorb in {term.xorb for _, term in chosen}
                },
            }
        )

    def _places(self, xorb: str, terms: list[Term]) -> list[dict[str, Any]]:
        """Return where to read chunks of a xorb.

        Overlapping ranges are merged, as on the real server: the client takes the first that has
        what it needs.
        """
        merged: list[list[int]] = []
        for start, end in sorted((term.start, term.end) for term in terms):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        places = chunk_places((self._xorbs / xorb).read_bytes(), merged[-1][1])
        return [
            {
                "range": {"start": start, "end": end},
                "url_range": {"start": places[start], "end": places[end] - 1},
            }
            for start, end in merged
        ]


def _address(request: Request) -> str:
    """Return how the client calls this server."""
    return f"http://{request.headers['Host']}"


def _check(request: Request, token: str) -> None:
    """Refuse what was not given by `token`: neither the Hub's tokens nor a read token to write."""
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    if given not in (token, WRITE_TOKEN):
        raise HubError(401, "Unauthorized")


def _hash_text(data: bytes) -> str:
    """Return Xet's way to write 32 bytes: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))


def read_shard(data: bytes) -> dict[str, File]:
    """Return the files of a shard: a header, then records of 48 bytes.

    Each file is one record with its hash, flags and number of terms, that many records of terms,
    as many of verification hashes (flag 31), and one with the SHA-256 (flag 30).
    """
    files, place = {}, 48
    while data[place : place + 32] != b"\xff" * 32:
        name = _hash_text(data[place : place + 32])
        flags, count = struct.unpack("<II", data[place + 32 : place + 40])
        terms = []
        for record in range(place + 48, place + 48 * (count + 1), 48):
            numbers = struct.unpack("<III", data[record + 36 : record + 48])
            terms.append(Term(_hash_text(data[record : record + 32]), *numbers))
        place += 48 * (1 + count * (2 if flags >> 31 else 1))
        sha256 = None
        if flags >> 30 & 1:
            sha256 = _hash_text(data[place : place + 32])
            place += 48
        files[name] = File(sha256, tuple(terms))
    return files


def chunk_places(xorb: bytes, count: int) -> list[int]:
    """Return where the first `count` chunks of a xorb begin, and where the last of them ends.

    A chunk has a header of 8 bytes: version, 3 bytes of packed length, scheme, 3 bytes of length.
    """
    places = [0]
    for _ in range(count):
        at = places[-1]
        places.append(at + 8 + int.from_bytes(xorb[at + 1 : at + 4], "little"))
    return places
