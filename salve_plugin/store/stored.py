"""What can be saved, read back, pushed, verified and inspected: once, for every kind of thing."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Unpack

from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.store.card import CARD_FILE, card_at, state_of_card
from salve_plugin.store.files import FileReader
from salve_plugin.store.folders import save_into
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.hub.push import Destination, How, Pushed, push
from salve_plugin.store.json import Json
from salve_plugin.store.place import Content, Existing, FileChange
from salve_plugin.store.seal import Format
from salve_plugin.store.source import PathLike, Source, Where, open_source

S = TypeVar("S", bound="Stored")


@dataclass(frozen=True)
class Packed:
    """A thing as it goes to a place.

    Attributes:
        fields: of the manifest: what the thing is, its digest among it.
        listed: files that the manifest answers for.
        others: further files, put in place before the card and those.
        obsolete: names of files of the older thing there that are to be removed.
    """

    fields: Json
    listed: Mapping[str, bytes]
    others: Mapping[str, Content] = field(default_factory=dict)
    obsolete: Sequence[str] = ()


Pack = Callable[[Existing, dict[str, Any] | None], Packed]


@dataclass(frozen=True)
class Opened:
    """A manifest and the files that it answers for, each read once and found to be its own.

    Attributes:
        config: the manifest.
        record: its typed fields.
        files: by name.
        size: bytes of them all.
        parts: of what consists of several things, each opened, by the names of their subfolders.
    """

    config: dict[str, Any]
    record: Any
    files: Mapping[str, bytes]
    size: int
    parts: Mapping[str, "Opened"] = field(default_factory=dict)


class Stored(ABC):
    """A thing that lies in a folder, or on the Hub, under a seal.

    A folder holds the manifest, the files that it lists, and `README.md`, the card, which is for
    people: nothing is read from it, so it has no digest and its text may be edited; `inspect`
    tells whether it was. Saving again never overwrites such text. Other files are left alone.
    """

    format: ClassVar[Format]

    @property
    @abstractmethod
    def digest(self) -> str:
        """The identity: the same for the same contents, however they are stored (hex SHA-256)."""

    @abstractmethod
    def packed(self, existing: Existing, previous: dict[str, Any] | None) -> Packed:
        """Return what is to be written.

        Args:
            existing: what is at the place already.
            previous: the manifest there, if it is a valid one.

        Raises:
            InputError: if a part has no exact JSON form, or somebody's own files are in the way.
        """

    @classmethod
    @abstractmethod
    def built(cls: type[S], opened: Opened, origin: Origin | None) -> S:
        """Return the thing from its files.

        Args:
            opened: the files.
            origin: where on the Hub they are from.

        Raises:
            ArtifactError: if they contradict themselves or each other.
        """

    @classmethod
    def opened(cls, read: FileReader) -> Opened:
        """Return what lies at a place, the digest of every file checked, nothing else used.

        Raises:
            ArtifactError: says what was found, what was expected and what to do.
        """
        # The manifest first: it says which files are to be read, and how long they may be.
        data = read(cls.format.manifest, cls.format.max_bytes)
        config, record = cls.format.read(data)
        files = cls.format.fetch(config, read)
        return Opened(config, record, files, len(data) + sum(map(len, files.values())))

    @classmethod
    def beside(cls, opened: Opened) -> Mapping[str, Any]:
        """Return the entries of files that belong here but are too large to be read whole."""
        return {}

    @classmethod
    def described(cls, opened: Opened, read: FileReader) -> Json:
        """Return what a thing says about itself, see `inspect`, without where it is from."""
        card = state_of_card(read, cls.format.card(opened.config))
        return {**opened.config, "bytes": opened.size, "card": card}

    def planned(self, existing: Existing, pack: Pack | None = None) -> FileChange:
        """Return what to write so that the place holds exactly this.

        The manifest is the last of the files: until it is in place, the digests in an older one
        expose a mixture.

        Args:
            existing: what is there.
            pack: `packed`, with further arguments where it takes some.

        Raises:
            InputError: as `packed`, or if what is written could not be read back.
            WriteError: if the text of the card there could not be kept.
        """
        form, previous = self.format, self.format.previous(existing)
        packed = (pack or self.packed)(existing, previous)
        config, manifest = form.sealed(packed.fields, packed.listed)
        # Whatever is written can be read: the reader's own checks are the writer's.
        try:
            self.read_back(manifest, packed.listed)
        except ArtifactError as error:
            raise InputError(f"the {form.name} could not be read back: {error}") from error
        card = form.card(config).over(
            card_at(existing), None if previous is None else form.card(previous)
        )
        # In the order in which they are put in place.
        files = {**packed.others, CARD_FILE: card, **packed.listed, form.manifest: manifest}
        return FileChange(files, packed.obsolete)

    def read_back(self, manifest: bytes, listed: Mapping[str, bytes]) -> None:
        """Raise ArtifactError unless the files can be read as they are going to be written."""
        files = {**listed, self.format.manifest: manifest}
        self.built(self.opened(lambda name, _: files[name]), None)

    def save_pretrained(self, folder: PathLike) -> Path:
        """Write it into a folder; the network is never used.

        The same thing gives the same bytes. Over an older one it is all or nothing (see
        `salve_plugin.store.folders.replace_files`): files that only the older one had are removed,
        unless somebody changed them, and files that are not its own stay. Of an existing
        `README.md` only the metadata are updated, except that a text which is exactly what this
        library wrote for the older one is written anew.

        Returns:
            The folder.

        Raises:
            FolderInUseError: if another job writes into the folder; it is left to that job.
            InputError: if a part has no exact JSON form, the result could not be read back, or the
                existing `README.md` has unreadable metadata.
            WriteError: if the disk is full or the folder cannot be written; nothing is changed.
        """
        return save_into(folder, self.planned)

    @classmethod
    def from_pretrained(cls: type[S], source: PathLike, **where: Unpack[Where]) -> S:
        """Read what `save_pretrained` or `push_to_hub` wrote, bit for bit.

        Everything is checked before anything is used: any changed bit in any file but the card is
        found. From the Hub, a revision is resolved to a commit once and all files are that
        commit's; the result's `origin` names it. What was damaged in the client's cache is
        downloaded again.

        Args:
            source: a local folder, or a Hub repository as "user/name".
            **where: `revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download` and `endpoint`, see `salve_plugin.store.source.Where`.

        Raises:
            ArtifactError: if there is nothing of the kind, or it is damaged, changed, incomplete,
                too large, of another format, or contradicts itself.
            HubError: if the Hub refuses or cannot be reached and the cache does not help.
            InputError: if an argument is ill-formed.
            WriteError: if the client's cache cannot be written.
        """
        return cls.read_from(open_source(source, cls.format.manifest, **where))

    @classmethod
    def read_from(cls: type[S], place: Source) -> S:
        """Read from a place that is open; see `from_pretrained`."""

        def read(reader: FileReader) -> S:
            opened = cls.opened(reader)
            return cls.built(opened, cls.origin_at(place, opened.config))

        return place.use(read)

    @classmethod
    def origin_at(cls, place: Source, config: Mapping[str, Any]) -> Origin | None:
        """Return where on the Hub a place is, for the thing that was just read from it."""
        origin = place.origin
        return origin and replace(origin, digest=cls.format.own(config)["digest"])

    def push_to_hub(self, repo_id: str, **how: Unpack[How]) -> Pushed:
        """Put it on the Hub in one commit, or leave everything there as it was.

        What holds for `save_pretrained` over an older one holds here too. Pushing again what is
        there already makes no commit.

        Args:
            repo_id: "user/name"; created if missing (not for a pull request).
            **how: `subfolder`, `revision`, `private`, `token`, `commit_message`, `create_pr`,
                `tag` and `endpoint`, see `salve_plugin.store.hub.push.How`.

        Returns:
            The exact place; its `reference.commit` as `revision` always gets the same bytes.

        Raises:
            HubConflictError: if somebody else committed meanwhile, or the tag is taken.
            HubError: if the Hub refused or cannot be reached; the same call can be made again and
                makes no second commit.
            InputError: if an argument is ill-formed, or as for `save_pretrained`.
        """
        message = f"Add {self.format.title} {self.digest[:12]}"
        return push(Destination.of(repo_id, how), self.planned, message)

    @classmethod
    def verify(cls, source: PathLike, **where: Unpack[Where]) -> str:
        """Check everything that reading checks and return the digest.

        An edited model that is listed is checked too: files of a folder by their SHA-256, those on
        the Hub by the Hub's, so that the model is not downloaded.

        Raises:
            SalveError: as `from_pretrained`.
        """
        place = open_source(source, cls.format.manifest, **where)

        def read(reader: FileReader) -> Opened:
            opened = cls.opened(reader)
            # Made and dropped: only so is it known that the parts agree.
            cls.built(opened, None)
            return opened

        # After the manifest itself was checked: it says what the large files have to be.
        opened = place.use(read)
        place.check_beside(cls.beside(opened), cls.format.manifest)
        return str(cls.format.own(opened.config)["digest"])

    @classmethod
    def inspect(cls, source: PathLike, **where: Unpack[Where]) -> Json:
        """Return what a thing says about itself, after checking the digest of every file.

        Only JSON is read and hashes are computed; tensors are not opened. Beside the manifest's own
        fields (`format.schema()` describes them) there are

        - `bytes`: the size of its files,
        - `card`: "as written", "edited" (by people: its tables may differ from the manifest),
          "missing", or "unknown" (no plain file, too long, or not in the cache where the network is
          not to be used),
        - `origin`: repository, commit and subfolder if it is on the Hub, else None.

        Args:
            source: a local folder, or a Hub repository as "user/name".
            **where: see `salve_plugin.store.source.Where`.

        Raises:
            SalveError: as for reading.
        """
        place = open_source(source, cls.format.manifest, **where)
        said = place.use(lambda read: cls.described(cls.opened(read), read))
        origin = place.origin
        return {**said, "origin": None if origin is None else origin.reference.to_json()}
