"""The manifest: one JSON file that seals a folder, so that a single changed bit shows.

Two digests, for two questions. `digest` is the identity of what the folder holds: the same for the
same content, whatever wrote it. `manifest_sha256` seals the file: it is over all its bytes but the
one line that holds it. Every other file is listed with its own SHA-256, so no bit is uncovered.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from salve_plugin.errors import ArtifactError, BaseMismatchError, InputError
from salve_plugin.store.card import Card
from salve_plugin.store.digest import sha256_bytes, sha256_file
from salve_plugin.store.files import FileReader
from salve_plugin.store.json import Json, dump, parse_json, readable_json, shortened
from salve_plugin.store.place import Existing
from salve_plugin.store.producer import producer
from salve_plugin.store.record import Index, Record, Sha256
from salve_plugin.store.tensors import MAX_TENSOR_FILE_BYTES

FORMAT_VERSION = "2.0"
"""Major: an older reader would get it wrong. Minor: it would only miss something."""
MAX_CONFIG_BYTES = 16 * 2**20
MAX_PICTURE_BYTES = 16 * 2**20
LIMITS = {".json": MAX_CONFIG_BYTES, ".png": MAX_PICTURE_BYTES}
"""The longest file that is read, by the end of its name; of others `MAX_TENSOR_FILE_BYTES`."""

SEAL = "manifest_sha256"
# Where and how a thing was written down: the same thing in other files has the same identity.
CIRCUMSTANCES = frozenset({"digest", "files", "format_version", SEAL, "merged", "producer"})

Version = Annotated[str, Meta(pattern=r"^2\.[0-9]{1,4}$(?!\n)")]
"""Major and minor number; a reader refuses a newer major number."""


@dataclass(frozen=True)
class FileEntry(Record):
    """A file as a manifest lists it: the SHA-256 of its bytes, and their number."""

    sha256: Sha256
    size: Index

    @classmethod
    def of(cls, content: bytes | Path) -> Json:
        """Return the entry of bytes, or of a local file, which is read in pieces, as JSON."""
        if isinstance(content, Path):
            return cls(sha256_file(content), content.stat().st_size).to_json()
        return cls(sha256_bytes(content), len(content)).to_json()


@dataclass(frozen=True)
class Format:
    """How things of one kind are sealed.

    Attributes:
        name: what such a thing is called in messages.
        title: what it is called in the title of a commit.
        manifest: name of the sealed file.
        record: the manifest's fields; what their types cannot say is for its `__post_init__`.
        card: the card that belongs to a manifest, a function of its fields alone.
        features: what a reader must know to read a manifest that lists it in `requires`.
        inside: names that lead to the sealed object in the manifest; empty for the whole of it.
        foreign: what to do with a manifest that has no such object.
        max_bytes: of the manifest.
    """

    name: str
    title: str
    manifest: str
    record: type[Record]
    card: Callable[[Json], Card]
    features: frozenset[str] = frozenset()
    inside: tuple[str, ...] = ()
    foreign: str = ""
    max_bytes: int = MAX_CONFIG_BYTES

    def schema(self) -> Json:
        """Return the manifest's JSON Schema (draft 2020-12), as it is enforced on reading."""
        return self.record.schema()

    def own(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sealed object of a manifest: digest, files, version and seal are its fields.

        Raises:
            ArtifactError: if there is none.
        """
        own: Any = config
        # SAELens reads a dictionary from `cfg.json`: there the sealed object is one entry among its
        # own.
        for name in self.inside:
            own = own.get(name) if isinstance(own, dict) else None
        if not isinstance(own, dict):
            raise ArtifactError(
                f"{self.manifest} has no {self.inside[-1]!r} in its {self.inside[0]}: salve_plugin "
                f"did not write it. {self.foreign}"
            )
        return own

    def sealed(self, config: Json, listed: Mapping[str, bytes]) -> tuple[Json, bytes]:
        """Return a manifest that lists files, and its bytes.

        Args:
            config: what the thing is, its digest among it.
            listed: the files that the manifest is to answer for.

        Raises:
            InputError: if a value has no exact JSON form.
        """
        config = self._with(
            config,
            files={name: FileEntry.of(data) for name, data in listed.items()},
            format_version=FORMAT_VERSION,
            producer=producer(),
        )
        return config, self.written(config)

    def written(self, config: Json) -> bytes:
        """Return the bytes of a manifest under a new seal."""
        # The seal is over the bytes without its own line, so that a reader needs no parser to check
        # it, and nothing about the layout is left open.
        own = {name: value for name, value in self.own(config).items() if name != SEAL}
        bare = _replaced(config, self.inside, own)
        return readable_json(self._with(bare, **{SEAL: sha256_bytes(readable_json(bare))}))

    def _with(self, config: Json, **fields: object) -> Json:
        return _replaced(config, self.inside, {**self.own(config), **fields})

    def read(self, data: bytes) -> tuple[dict[str, Any], Any]:
        """Return a manifest from its bytes, and its `record`: all but what other files can show.

        Raises:
            ArtifactError: if it is of another format or needs an unknown feature, a field is
                missing, unknown or ill-formed, or a bit differs from what was written.
        """
        config: dict[str, Any] = parse_json(data, self.manifest, max_bytes=self.max_bytes)
        own = self.own(config)
        # First what another version would change, so that its user is not told "corrupt".
        self._check_version(own.get("format_version"))
        self._check_features(own.get("requires"))
        self._check_seal(data, own.get(SEAL))
        try:
            return config, self.record.from_json(config)
        except InputError as error:
            raise ArtifactError(
                f"{self.manifest}: {error}. It is corrupt, was not written by salve_plugin, or "
                "needs a newer one"
            ) from error

    def previous(self, existing: Existing) -> dict[str, Any] | None:
        """Return the manifest that a place has already, if it is a valid one.

        Raises:
            InputError: if it is another program's, whose files would be replaced.
        """
        try:
            data = existing.read(self.manifest, self.max_bytes)
        except ArtifactError:
            return None
        # Damaged or newer: then nothing there is known to be our own.
        try:
            return self.read(data)[0]
        except ArtifactError as error:
            if self._is_foreign(data):
                raise InputError(
                    f"there is a {self.manifest} already that salve_plugin did not write; nothing "
                    "was written. Choose another place, or move those files away"
                ) from error
            return None

    def _is_foreign(self, data: bytes) -> bool:
        """Tell whether a manifest has the name that another program gives its own."""
        try:
            self.own(json.loads(data))
        except ArtifactError:
            return True
        except (ValueError, RecursionError):  # nobody's
            return False
        return False

    def fetch(self, config: Mapping[str, Any], read: FileReader) -> dict[str, bytes]:
        """Return the bytes of every file that a manifest lists, each read once and then checked.

        No more than was written is read into memory, whatever a file has become.

        Raises:
            ArtifactError: if a file is missing, a link, longer than it should be or than the limits
                allow, or not what was written.
        """
        contents = {}
        for name, entry in sorted(self.own(config)["files"].items()):
            # The size is what the manifest claims, and would be allocated.
            limit = LIMITS.get(Path(name).suffix, MAX_TENSOR_FILE_BYTES)
            if entry["size"] > limit:
                raise ArtifactError(
                    f"{self.manifest} says that {name} has {entry['size']} bytes, more than the "
                    f"{limit} that are read; this is no {self.name} of salve_plugin, or a newer one"
                )
            contents[name] = read(name, entry["size"])
            self.check_file(name, contents[name], entry)
        return contents

    def check_file(self, name: str, data: bytes, entry: Mapping[str, Any]) -> None:
        """Raise ArtifactError unless bytes have the size and digest that the manifest states."""
        if len(data) != entry["size"]:
            raise ArtifactError(
                f"{name} has {len(data)} bytes, {self.manifest} says {entry['size']}; it is "
                "truncated or another file. Restore the files, or write them anew"
            )
        digest = sha256_bytes(data)
        if digest != entry["sha256"]:
            raise ArtifactError(
                f"{name} was changed: its SHA-256 is {digest}, {self.manifest} says "
                f"{entry['sha256']}. Restore the files, or write them anew"
            )

    def check_identity(self, digest: str, config: Mapping[str, Any]) -> None:
        """Raise ArtifactError unless a manifest names this digest as the thing's identity."""
        said = self.own(config)["digest"]
        if digest != said:
            raise ArtifactError(
                f"the {self.name} is {digest}, {self.manifest} says {said}: it was changed by hand"
            )

    @contextmanager
    def contradictions(self) -> Iterator[None]:
        """Raise ArtifactError if what is made of checked files refuses to be made of them."""
        try:
            yield
        except (BaseMismatchError, InputError) as error:
            raise ArtifactError(
                f"the {self.name} contradicts itself: {str(error)[:1000]}"
            ) from error

    def check_derived(
        self, derived: Mapping[str, Any], config: Mapping[str, Any], *, files: str
    ) -> None:
        """Raise ArtifactError unless a manifest says exactly what follows from the content.

        Args:
            derived: the fields that follow.
            config: the manifest.
            files: where they follow from, for the message.
        """
        # As JSON text, since Python takes 1, 1.0 and true for equal.
        wrong = [name for name in derived if dump(derived[name]) != dump(config.get(name))]
        if wrong:
            raise ArtifactError(
                f"{self.manifest} contradicts {files}: {wrong} do not follow from them and the "
                "other fields; it was changed by hand"
            )

    def _check_version(self, version: object) -> None:
        if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", version):
            raise ArtifactError(
                f"{self.manifest} has the format_version {str(version)[:40]!r}, expected for "
                f"example '{FORMAT_VERSION}'; it is corrupt or not written by salve_plugin"
            )
        ours, theirs = (int(text.split(".")[0]) for text in (FORMAT_VERSION, version))
        if theirs > ours:
            raise ArtifactError(
                f"the {self.name} has format {version}, this salve_plugin reads up to {ours}.x; "
                "upgrade salve_plugin (`pip install -U salve-plugin`)"
            )
        if theirs < ours:
            raise ArtifactError(
                f"the {self.name} has format {version}, which never was released, and this "
                f"salve_plugin reads {ours}.x only; make the {self.name} anew"
            )

    def _check_features(self, features: object) -> None:
        # Whether it is a list of names is for the record to say; here it is only read.
        listed = features if isinstance(features, list) else []
        unknown = [name for name in listed if not (isinstance(name, str) and name in self.features)]
        if unknown:
            raise ArtifactError(
                f"the {self.name} requires {shortened(unknown[:5], 200)}, this salve_plugin knows "
                f"{sorted(self.features)}; upgrade salve_plugin (`pip install -U salve-plugin`)"
            )

    def _check_seal(self, data: bytes, said: object) -> None:
        # No JSON string holds a raw newline, so this is a line of an object at that depth.
        indent = "  " * (len(self.inside) + 1)
        line = f'\n{indent}"{SEAL}": "{said}",'.encode(errors="replace")
        before, seal, after = data.partition(line)
        digest = sha256_bytes(before + after)
        if not seal or digest != said:
            raise ArtifactError(
                f"{self.manifest} was changed: it hashes to {digest}, it says {str(said)[:64]!r}. "
                "Restore the files, or write them anew"
            )


def identity_fields(config: Mapping[str, Any]) -> Json:
    """Return those fields of a manifest that say what a thing is."""
    return {name: value for name, value in config.items() if name not in CIRCUMSTANCES}


def _replaced(config: Json, path: tuple[str, ...], value: Json) -> Json:
    """Return a JSON object with the object that a path leads to exchanged."""
    if not path:
        return value
    inner = config[path[0]]
    assert isinstance(inner, dict)
    return {**config, path[0]: _replaced(inner, path[1:], value)}
