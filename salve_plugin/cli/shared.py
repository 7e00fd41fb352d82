"""Whatever can be shared: an edit, a bundle of edits or a dictionary, whichever is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import HubError, MissingFileError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.files import FileReader
from salve_plugin.store.json import Json
from salve_plugin.store.source import PathLike, Source, Where, open_source
from salve_plugin.store.stored import Opened

Shared = EditArtifact | EditBundle | Dictionary
KINDS: dict[str, type[Shared]] = {
    "edit": EditArtifact,
    "bundle": EditBundle,
    "dictionary": Dictionary,
}


@dataclass(frozen=True)
class SharedItem:
    """What lies at a place, verified.

    Attributes:
        kind: "edit", "bundle" or "dictionary".
        shared: the thing itself.
        description: what it says about itself, from the very bytes that `shared` was read from.
        models: the edited models that it lists, entries of a manifest by path in the place.
        source: the folder or the one commit that it was read from.
    """

    kind: str
    shared: Shared
    description: Json
    models: Mapping[str, Any]
    source: Source

    @property
    def digest(self) -> str:
        """The identity of what was found."""
        return self.shared.digest

    def check_models(self) -> None:
        """Check the edited models that lie beside what was found; see `EditArtifact.verify`.

        Raises:
            SalveError: as `EditArtifact.verify`.
        """
        self.source.check_beside(self.models, self.shared.format.manifest)


def find(source: PathLike, **where: Unpack[Where]) -> SharedItem:
    """Return what lies at a place; every file is read once, all of one commit.

    Raises:
        MissingFileError: if nothing that can be shared lies there.
        SalveError: as for reading it.
    """
    manifests = [kind.format.manifest for kind in KINDS.values()]
    opened_source = open_source(source, *manifests, **where)
    absent: MissingFileError | HubError | None = None
    for name, kind in KINDS.items():

        def read(reader: FileReader, kind: type[Shared] = kind) -> tuple[Opened, Shared, Json]:
            opened = kind.opened(reader)
            shared: Shared = kind.built(opened, kind.origin_at(opened_source, opened.config))
            return opened, shared, _description(shared, opened, reader)

        try:
            opened, shared, description = opened_source.use(read)
        except (MissingFileError, HubError) as error:
            if isinstance(error, HubError) and error.reason != "not_cached":
                raise
            # Another kind may lie there, or be in the cache: only if none does, the first error
            # counts.
            absent = absent or error
            continue
        reference = None if opened_source.origin is None else opened_source.origin.reference
        description["origin"] = None if reference is None else reference.to_json()
        return SharedItem(name, shared, description, kind.beside(opened), opened_source)
    assert absent is not None
    raise absent


def _description(shared: Shared, opened: Opened, read: FileReader) -> Json:
    if not isinstance(shared, Dictionary):
        return shared.described(opened, read)
    # Not its card: `cfg.json` is mostly for SAELens, and a dictionary has little to tell.
    return {
        "learner": shared.learner,
        "options": shared.options,
        "latents": shared.n_latents,
        "site": shared.site.to_json(),
        "meta": dict(shared.meta),
        "digest": shared.digest,
    }
