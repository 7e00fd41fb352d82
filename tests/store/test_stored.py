"""A kind of thing that is neither an edit nor a dictionary, in folders: what every kind can do."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from msgspec import Meta

from salve_plugin.errors import ArtifactError, InputError, MissingFileError
from salve_plugin.store.card import Card
from salve_plugin.store.digest import content_digest
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.json import Json
from salve_plugin.store.place import Existing, ExistingFolder
from salve_plugin.store.producer import Producer
from salve_plugin.store.record import Record, Sha256
from salve_plugin.store.seal import FileEntry, Format, Version, identity_fields
from salve_plugin.store.stored import Opened, Packed, Stored


@dataclass(frozen=True)
class NoteManifest(Record):
    digest: Sha256
    files: dict[str, FileEntry]
    format_version: Version
    manifest_sha256: Sha256
    producer: Producer
    requires: list[str]
    title: Annotated[str, Meta(max_length=20)]


def note_card(config: Json) -> Card:
    return Card({"tags": ["note"]}, f"# {config['title']}\n")


@dataclass(frozen=True)
class Note(Stored):
    """A title and a picture of sorts."""

    title: str
    picture: bytes
    origin: Origin | None = None

    format: ClassVar[Format] = Format(
        "note", "note", "note.json", NoteManifest, note_card, features=frozenset({"title"})
    )

    @property
    def fields(self) -> Json:
        return {"title": self.title, "requires": ["title"]}

    @property
    def digest(self) -> str:
        return content_digest(self.fields, {})

    def packed(self, existing: Existing, previous: dict[str, Any] | None) -> Packed:
        return Packed({**self.fields, "digest": self.digest}, {"picture.png": self.picture})

    @classmethod
    def built(cls, opened: Opened, origin: Origin | None) -> "Note":
        cls.format.check_identity(content_digest(identity_fields(opened.config), {}), opened.config)
        return cls(opened.config["title"], opened.files["picture.png"], origin)


NOTE = Note("words", b"pixels")


def test_what_is_saved_comes_back_and_is_the_same_bytes_again(tmp_path: Path) -> None:
    assert NOTE.save_pretrained(tmp_path / "a") == tmp_path / "a"
    assert Note.from_pretrained(tmp_path / "a") == NOTE
    assert Note.verify(tmp_path / "a") == NOTE.digest
    Note.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("README.md", "note.json", "picture.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_inspect_tells_the_fields_the_size_and_the_state_of_the_card(tmp_path: Path) -> None:
    NOTE.save_pretrained(tmp_path)
    said = Note.inspect(tmp_path)
    assert (said["title"], said["card"], said["origin"]) == ("words", "as written", None)
    assert said["bytes"] == (tmp_path / "note.json").stat().st_size + len(NOTE.picture)
    (tmp_path / "README.md").write_text("mine")
    assert Note.inspect(tmp_path)["card"] == "edited"
    Note("other", b"").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text().endswith("mine")
    (tmp_path / "README.md").unlink()
    assert Note.inspect(tmp_path)["card"] == "missing"


def test_every_flipped_bit_under_the_seal_is_refused(tmp_path: Path) -> None:
    NOTE.save_pretrained(tmp_path)
    for name in ("note.json", "picture.png"):
        data = (tmp_path / name).read_bytes()
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            (tmp_path / name).write_bytes(changed)
            with pytest.raises(ArtifactError):
                Note.verify(tmp_path)
        (tmp_path / name).write_bytes(data)
    assert Note.verify(tmp_path) == NOTE.digest


def resealed(folder: Path, **fields: object) -> None:
    config = {**json.loads((folder / "note.json").read_text()), **fields}
    (folder / "note.json").write_bytes(Note.format.written(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": "1.0"}, r"the note has format 1\.0, .* reads 2\.x only"),
        ({"format_version": "3.1"}, r"reads up to 2\.x; upgrade"),
        ({"format_version": 2}, "expected for example '2.0'"),
        ({"requires": ["title", "sound"]}, r"requires \['sound'\]"),
        ({"title": "x" * 21}, "length <= 20"),
        ({"title": "other"}, "the note is [0-9a-f]{64}, note.json says"),
        ({"more": 1}, r"unknown fields \['more'\]"),
        ({"files": {"picture.png": {"sha256": "0" * 64, "size": 2**40}}}, "more than the 16777216"),
    ],
)
def test_a_right_seal_does_not_help_a_wrong_manifest(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    resealed(NOTE.save_pretrained(tmp_path))
    assert Note.verify(tmp_path) == NOTE.digest
    resealed(tmp_path, **fields)
    with pytest.raises(ArtifactError, match=message):
        Note.from_pretrained(tmp_path)


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be read back: .*length <= 20"):
        Note("x" * 21, b"").save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(MissingFileError):
        Note.from_pretrained(tmp_path)


def test_the_manifest_is_put_in_place_last(tmp_path: Path) -> None:
    change = NOTE.planned(ExistingFolder(tmp_path))
    assert list(change.files) == ["README.md", "picture.png", "note.json"]
    assert list(change.obsolete) == []
