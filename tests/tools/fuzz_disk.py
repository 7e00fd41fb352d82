"""Mutations of the folder: links, pipes, devices and other things that are no plain files."""

import os
import socket
from pathlib import Path
from random import Random

from fuzz_form import form_of
from fuzz_mutant import Mutant, Mutation, Verdict
from small_artifacts import CARD, TENSORS, Files


def _symlink(rng: Random, files: Files) -> Mutant:
    """Replace a file by a link: in the folder, out of it, to a device, in a circle, to nowhere."""
    name, where = rng.choice(sorted(files)), rng.choice(("in", "out", "zero", "circle", "nowhere"))

    def arrange(folder: Path) -> None:
        path = folder / name
        targets = {
            "in": folder / "copy", "out": folder.parent / "outside", "zero": Path("/dev/zero"),
            "circle": path, "nowhere": folder / "none",
        }  # fmt: skip
        if where in ("in", "out"):
            path.rename(targets[where])
        else:
            path.unlink()
        path.symlink_to(targets[where])

    return Mutant(files, "refused", arrange)


def _no_file(rng: Random, files: Files) -> Mutant:
    """Put something in a file's place that is no file, or nothing."""
    name, kind = rng.choice(sorted(files)), rng.choice(("none", "folder", "pipe", "socket", "case"))

    def arrange(folder: Path) -> None:
        path = folder / name
        if kind == "case":
            path.rename(path.with_name(path.name.upper()))
            return
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            _socket_at(path)

    return Mutant(files, "refused", arrange)


def _socket_at(path: Path) -> None:
    back = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has little room
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(back)


def _sparse(rng: Random, files: Files) -> Mutant:
    """Let a file be longer than it says, without taking space."""
    name = rng.choice(sorted(files))
    size = rng.choice((2**20, 2**24 + 1, 2**31, 3 * 2**30, 2**32 + 1, 2**40))

    def arrange(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return Mutant(files, "refused", arrange)


def _hard_link(rng: Random, files: Files) -> Mutant:
    """Let a file have a second name elsewhere: its content is what it is."""
    name = rng.choice(sorted(files))
    return Mutant(files, "same", lambda folder: os.link(folder / name, folder.parent / "second"))


def _beside(rng: Random, files: Files) -> Mutant:
    """Put files beside the artifact that other programs would load; nobody here reads them."""
    name = rng.choice((
        "pytorch_model.bin", "setup.py", "conftest.py", "__init__.py", "torch.py", "model.py",
        "sitecustomize.py", "custom_generate.py", "config.json", "model.safetensors", "x.png",
        "picture_b.png", ".git", "requirements.txt", "edit.safetensors.index.json", "..data",
    ))  # fmt: skip
    evil = rng.choice((b"\x80\x04cos\nsystem\n", b"raise SystemExit", b"{}", b""))
    return Mutant(files, "same", lambda folder: _write(folder / name, evil))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _card(rng: Random, files: Files) -> Mutant:
    """Put something in the card's place, which reading never looks at."""
    kind = rng.choice(("text", "binary", "link", "folder", "pipe", "sparse"))

    def arrange(folder: Path) -> None:
        path = folder / CARD
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(b"---\n!!python/object/apply:os.system [x]\n---\n" + rng.randbytes(99))
            if kind == "sparse":
                os.truncate(path, 2**40)

    return Mutant(files, "same", arrange)


def _folder(rng: Random, files: Files) -> Mutant:
    """Let the folder itself be a link, or nothing that can be read."""
    kind = rng.choice(("link", "file", "empty"))
    verdict: Verdict = "same" if kind == "link" else "refused"

    def arrange(folder: Path) -> None:
        other = folder.parent / "other"
        folder.rename(other)
        if kind == "link":  # the user's own choice, not the artifact's
            folder.symlink_to(other)
        elif kind == "file":
            folder.write_bytes(files[form_of(files).manifest])
        else:
            folder.mkdir()

    return Mutant(files, verdict, arrange)


def _other_name(rng: Random, files: Files) -> Mutant:
    """Leave the manifest as it is and serve the tensors under another name as well."""
    name = form_of(files).tensors or TENSORS
    evil = files.get(name, b"evil")[::-1]
    names = (f"{name}.tmp", f"{name}~", f".{name}", name.upper())
    return Mutant(files, "same", lambda folder: _write(folder / rng.choice(names), evil))


MUTATIONS: dict[str, Mutation] = {
    "disk: link": _symlink,
    "disk: no file": _no_file,
    "disk: sparse": _sparse,
    "disk: hard link": _hard_link,
    "disk: files beside": _beside,
    "disk: card": _card,
    "disk: folder": _folder,
    "disk: other name": _other_name,
}
