"""Whatever can be shared: an edit, a bundle of edits or a dictionary, whichever is there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.saelens_layout import CONFIG_FILE as DICTIONARY_FILE
from salve_plugin.errors import HubError, MissingFileError
from salve_plugin.share.artifact import EditArtifact, located
from salve_plugin.share.bundle import EditBundle, located_bundle
from salve_plugin.share.bundle_files import BUNDLE_FILE, described_bundle, read_bundle_and_models
from salve_plugin.share.canonical import Json
from salve_plugin.share.dictionary_file import read_dictionary
from salve_plugin.share.folder import Reader, remembering
from salve_plugin.share.hub.address import Origin
from salve_plugin.share.manifest import CONFIG_FILE
from salve_plugin.share.reading import check_model, described, read_artifact
from salve_plugin.share.sources import PathLike, Source, Where, open_source

Shared = EditArtifact | EditBundle | Dictionary
_Parsed = tuple[Shared, Json, Mapping[str, Any]]


@dataclass(frozen=True)
class Found:
    """What lies at a place, verified.

    Attributes:
        kind: "edit", "bundle" or "dictionary".
        shared: the thing itself.
        said: what it says about itself, from the very bytes that `shared` was read from.
        models: the edited models that it lists, entries of a manifest by path in the place.
        place: the folder or the one commit that it was read from.
    """

    kind: str
    shared: Shared
    said: Json
    models: Mapping[str, Any]
    place: Source

    @property
    def digest(self) -> str:
        """The identity of what was found."""
        shared = self.shared
        return shared.digest() if isinstance(shared, Dictionary) else shared.digest

    def check_models(self) -> None:
        """Check the edited models that lie beside what was found; see `EditArtifact.verify`.

        Raises:
            SalveError: as `EditArtifact.verify`.
        """
        check_model(self.place, self.models)


def find(source: PathLike, **where: Unpack[Where]) -> Found:
    """Return what lies at a place; every file is read once, all of one commit.

    Raises:
        MissingFileError: if nothing that can be shared lies there.
        SalveError: as for reading it.
    """
    place = open_source(source, CONFIG_FILE, BUNDLE_FILE, DICTIONARY_FILE, **where)
    absent: MissingFileError | HubError | None = None
    for kind, parse in _KINDS.items():
        try:
            shared, said, models = place.use(parse)
        except (MissingFileError, HubError) as error:
            if isinstance(error, HubError) and error.reason != "not_cached":
                raise
            absent = absent or error
            continue
        reference = None if place.origin is None else place.origin.reference
        said["origin"] = None if reference is None else reference.to_json()
        return Found(kind, _located(shared, place.origin), said, models, place)
    assert absent is not None
    raise absent


def _read_edit(read: Reader) -> _Parsed:
    read = remembering(read)
    _, parts = read_artifact(read)
    said: dict[str, Any] = described(read)
    return EditArtifact(**parts), said, said["merged"] or {}


def _read_bundle(read: Reader) -> _Parsed:
    read = remembering(read)
    _, parts, models = read_bundle_and_models(read)
    return EditBundle(**parts), described_bundle(read), models


def _read_dictionary(read: Reader) -> _Parsed:
    dictionary = read_dictionary(read)
    said: Json = {
        "learner": dictionary.learner,
        "options": dictionary.options,
        "latents": dictionary.n_latents,
        "site": dictionary.site.to_json(),
        "meta": dict(dictionary.meta),
        "digest": dictionary.digest(),
    }
    return dictionary, said, {}


_KINDS: dict[str, Callable[[Reader], _Parsed]] = {
    "edit": _read_edit,
    "bundle": _read_bundle,
    "dictionary": _read_dictionary,
}


def _located(shared: Shared, origin: Origin | None) -> Shared:
    if isinstance(shared, EditArtifact):
        return located(shared, origin)
    if isinstance(shared, EditBundle):
        return located_bundle(shared, origin)
    shared.origin = None if origin is None else origin.reference
    return shared
