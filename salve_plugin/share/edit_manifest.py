"""`edit_config.json`: the typed fields of an edit's manifest, and how they follow from the edit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta
from torch import Tensor

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.edit import Edit
from salve_plugin.control.edit_fields import EditFields
from salve_plugin.control.operators import FORMS
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.dictionary_files import DictionaryFields, fields_of
from salve_plugin.errors import InputError
from salve_plugin.share import evidence
from salve_plugin.store.json import Json, check_json
from salve_plugin.store.producer import Producer
from salve_plugin.store.record import PLAIN_NAME, Name, Record, Sha256, Text, as_json
from salve_plugin.store.reference import Reference
from salve_plugin.store.seal import FileEntry, Version
from salve_plugin.store.tensors import MAX_TENSORS, TensorEntry, check_names, describe

if TYPE_CHECKING:
    from salve_plugin.share.artifact import EditArtifact

CONFIG_FILE = "edit_config.json"
BUNDLE_FILE = "edit_bundle.json"
"""The manifest of a bundle, which has its artifacts in subfolders."""
TENSOR_FILE = "edit.safetensors"

FEATURES = frozenset({"pristine", "alpha_crit", "dictionary", *FORMS})
"""What a reader must know: the parts that an artifact has, and the form of its operator."""

Value = Annotated[str, Meta(max_length=10_000)] | int | float | bool | None
Data = Annotated[dict[Name, Value], Meta(max_length=100)]
Labels = Annotated[list[Annotated[str, Meta(max_length=1000)]], Meta(max_length=1_000_000)]
Features = Annotated[
    list[
        Literal["alpha_crit", "dictionary", "gate", "low_rank_map", "low_rank_update", "pristine"]
    ],
    Meta(max_length=100, extra_json_schema={"uniqueItems": True}),
]
TensorName = Annotated[
    str,
    Meta(
        pattern=r"^(edit\.[a-z_]+|alpha_crit\.[a-z_]+|(pristine|dictionary)\.[A-Za-z0-9_.]+)$(?!\n)",
        max_length=600,
    ),
]
FileName = Annotated[str, Meta(pattern=rf"^(edit\.safetensors|picture_{PLAIN_NAME}\.png)$(?!\n)")]


@dataclass(frozen=True)
class EvaluationRecord(Record):
    """The same measures before and after the edit."""

    after: Annotated[dict[Name, int | float], Meta(max_length=10_000)]
    before: Annotated[dict[Name, int | float], Meta(max_length=10_000)]

    def __post_init__(self) -> None:
        """Check that they are the same measures.

        Raises:
            ArtifactError: names those that are not in both.
        """
        check_names(self.after, self.before, "measures after the edit")


@dataclass(frozen=True)
class DictionaryReference(Record):
    """Where the edit comes from.

    Attributes:
        at: the place on the Hub from which the dictionary can be had, if it is known to be on one.
        digest: its identity.
        fields: the dictionary itself, whose tensors are then `dictionary.*`.
        learner: name of its learner.
    """

    at: Reference | None
    digest: Sha256
    fields: DictionaryFields | None
    learner: Text | None


@dataclass(frozen=True)
class EditManifest(Record):
    """`edit_config.json`, which says what an edit artifact is and seals it.

    The file is JSON with sorted keys, an indent of two, in UTF-8, one newline at the end, without
    NaN or repeated keys. Nothing in it is imported, executed or used as a path; file names come
    from the closed pattern of `files`, module paths are compared with the model's own.

    Attributes:
        alpha_crit: the critical strengths, summarized by class; per image they are tensors.
        assessment: what the edit costs and achieves, and what is needed to measure it again.
        data: what the evidence was computed on, for people.
        dictionary: where the edit comes from.
        digest: identity: SHA-256 over this object without digest, files, format_version,
            manifest_sha256, merged and producer, as JSON with sorted keys and no spaces; then, for
            every tensor in the order of names, over such JSON of name, dtype and shape, and over
            its elements (row-major, little-endian); each block preceded by its length as eight
            little-endian bytes.
        edit: the edit, its base included, but for its tensors, which are `edit.*`.
        evaluation: the same measures before and after the edit.
        files: every other file, README.md excepted: it is for people, who may edit it.
        format_version: major and minor number; a reader refuses another major number.
        labels: class names by row of the classifier.
        manifest_sha256: SHA-256 over the bytes of this file without the one line of this field.
        merged: the whole edited model in timm's layout, where it lies beside the artifact: it is
            loaded by timm, not by readers of the artifact.
        producer: the program that wrote it.
        requires: what a reader must know, sorted.
        tensors: what edit.safetensors holds: exactly these.
    """

    alpha_crit: evidence.CritSummary | None
    assessment: Assessment | None
    data: Data
    dictionary: DictionaryReference | None
    digest: Sha256
    edit: EditFields
    evaluation: EvaluationRecord | None
    files: Annotated[
        dict[FileName, FileEntry],
        # The tensors, and `MAX_PICTURES`.
        Meta(max_length=65, extra_json_schema={"required": [TENSOR_FILE]}),
    ]
    format_version: Version
    labels: Labels | None
    manifest_sha256: Sha256
    merged: (
        # Both or none: either alone is no model.
        Annotated[dict[Literal["config.json", "model.safetensors"], FileEntry], Meta(min_length=2)]
        | None
    )
    producer: Producer
    requires: Features
    tensors: Annotated[dict[TensorName, TensorEntry], Meta(max_length=MAX_TENSORS)]

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            InputError: if there is no tensor file, or a feature is named twice.
        """
        if TENSOR_FILE not in self.files or len(set(self.requires)) < len(self.requires):
            raise InputError(f"{TENSOR_FILE} is not among the files, or a feature is named twice")


def manifest_of(artifact: "EditArtifact") -> Json:
    """Return the manifest's fields that say what an artifact is; sealing adds the rest.

    Raises:
        InputError: if a part holds a value that JSON has no exact form for.
    """
    critical = artifact.alpha_crit
    config: Json = as_json({
        "alpha_crit": None if critical is None else critical.to_json(),
        "assessment": artifact.assessment,
        "data": artifact.data or {},
        "dictionary": _dictionary_fields(artifact),
        "edit": artifact.edit.to_json(),
        "evaluation": artifact.evaluation,
        "labels": None if artifact.labels is None else list(artifact.labels),
        "requires": _requirements(artifact),
        "tensors": describe(tensors_of(artifact)),
    })  # fmt: skip
    check_json(config)
    return config


def tensors_of(artifact: "EditArtifact") -> dict[str, Tensor]:
    """Return every tensor of an artifact by its name in `edit.safetensors`."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "edit": artifact.edit.tensors,
        "pristine": artifact.pristine or {},
        "alpha_crit": {} if artifact.alpha_crit is None else evidence.tensors(artifact.alpha_crit),
    }
    if artifact.embed_dictionary and artifact.dictionary is not None:
        parts["dictionary"] = artifact.dictionary.tensors
    return {
        f"{part}.{name}": tensor.detach().cpu()
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def parts_of(manifest: EditManifest, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of an artifact from its manifest and tensors.

    Raises:
        ArtifactError: if the embedded dictionary is not what it should be.
        InputError: if a part contradicts another.
    """
    reference, critical, labels = manifest.dictionary, manifest.alpha_crit, manifest.labels
    dictionary = _dictionary(reference, _part(tensors, "dictionary"))
    return {
        "edit": Edit.from_json(manifest.edit, _part(tensors, "edit")),
        "dictionary": dictionary,
        "embed_dictionary": dictionary is not None,
        "dictionary_learner": reference and reference.learner,
        "dictionary_at": reference and reference.at,
        "alpha_crit": evidence.rebuild(critical, _part(tensors, "alpha_crit"), labels),
        "assessment": manifest.assessment,
        "evaluation": manifest.evaluation and manifest.evaluation.to_json(),
        "pristine": _part(tensors, "pristine") or None,
        "labels": labels,
        "data": manifest.data,
    }


def _requirements(artifact: "EditArtifact") -> list[str]:
    present = {
        "alpha_crit": artifact.alpha_crit is not None,
        "dictionary": artifact.embed_dictionary,
        "pristine": artifact.pristine is not None,
    }
    used = [name for name, is_there in present.items() if is_there]
    return sorted([artifact.edit.operator.form, *used])


def _dictionary_fields(artifact: "EditArtifact") -> Json | None:
    digest = artifact.edit.dictionary_digest
    if digest is None:
        return None
    # It is named even if it stays at home: whoever has it can tell by the digest that it is the
    # one.
    embedded = artifact.dictionary if artifact.embed_dictionary else None
    return {
        "at": artifact.dictionary_at,
        "digest": digest,
        "learner": artifact.dictionary_learner,
        "fields": None if embedded is None else fields_of(embedded),
    }


def _dictionary(
    reference: DictionaryReference | None, tensors: Mapping[str, Tensor]
) -> Dictionary | None:
    if reference is None or reference.fields is None:
        check_names(tensors, (), "tensors of the dictionary, which is not embedded,")
        return None
    return Dictionary.rebuilt(str(reference.learner), reference.fields, tensors, reference.digest)


def _part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{part}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{part}.")
    }
