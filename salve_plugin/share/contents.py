"""What an artifact holds, as Python values, and the same as a manifest and tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any

from torch import Tensor

from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import check_direction
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.files import sha256_tensor
from salve_plugin.reference import Reference
from salve_plugin.share import evidence
from salve_plugin.share.canonical import Json, check_json, shortened
from salve_plugin.share.dictionary_fields import fields_of, rebuilt
from salve_plugin.share.manifest import check_names
from salve_plugin.share.producer import producer
from salve_plugin.share.tensor_file import DTYPES, describe

Measures = Mapping[str, Mapping[str, int | float]]


@dataclass(frozen=True, eq=False)
class Contents:
    """The parts of an artifact; only the edit is needed.

    Attributes:
        edit: what is done to the model.
        dictionary: where the edit's direction comes from. Its digest is always recorded; its
            tensors only with `embed_dictionary`.
        embed_dictionary: whether the dictionary itself travels in the artifact.
        dictionary_learner: name of the dictionary's learner; taken from `dictionary` if given.
        dictionary_at: where on the Hub the dictionary is, see `Dictionary.push_to_hub`; taken
            from `dictionary` if that came from there.
        alpha_crit: exact critical strengths, stored per image and summarized per class.
        evaluation: the same measures before and after the edit,
            `{"before": {name: number}, "after": {name: number}}`.
        pristine: by weight path, the touched rows without any edit, (rows, width): enough to
            undo the edit in a model that was saved in edited form.
        pictures: PNG files by name, shown in the card.
        labels: names of the classes, by row of the classifier; those of `alpha_crit` if left out.
        data: what the evidence was computed on: name to text, number, truth value or None.
    """

    edit: Edit
    _: KW_ONLY
    dictionary: Dictionary | None = None
    embed_dictionary: bool = False
    dictionary_learner: str | None = None
    dictionary_at: Reference | None = None
    alpha_crit: AlphaCrit | None = None
    evaluation: Measures | None = None
    pristine: Mapping[str, Tensor] | None = None
    pictures: Mapping[str, bytes] | None = None
    labels: Sequence[str] | None = None
    data: Mapping[str, str | int | float | bool | None] | None = None

    def __post_init__(self) -> None:
        """Take over what other parts know, and check that all belong together.

        Raises:
            InputError: naming the part that does not fit.
        """
        if self.dictionary is not None:
            object.__setattr__(self, "dictionary_learner", self.dictionary.learner)
            if self.dictionary_at is None and self.dictionary.origin is not None:
                object.__setattr__(self, "dictionary_at", self.dictionary.origin)
        if self.labels is None and self.alpha_crit is not None:
            object.__setattr__(self, "labels", self.alpha_crit.classes)
        check_parts(self)


def manifest_of(contents: Contents) -> Json:
    """Return the manifest's fields that say what the artifact is; `seal` adds the rest.

    Raises:
        InputError: if a part holds a value that JSON has no exact form for.
    """
    edit, critical = contents.edit, contents.alpha_crit
    config: Json = {
        "alpha_crit": None if critical is None else critical.to_json(),
        "base": edit.base.to_json(),
        "data": dict(contents.data or {}),
        "dictionary": _dictionary_fields(contents),
        "edit": {
            "atom_norm": "unit",
            "latent": edit.latent,
            "mode": edit.mode,
            "operator": edit.operator,
            "rows": None if edit.rows is None else list(edit.rows),
            "site": edit.site.to_json(),
            "strength": edit.strength,
        },
        "evaluation": evaluation_fields(contents.evaluation),
        "labels": None if contents.labels is None else list(contents.labels),
        "producer": producer(),
        "requires": _requirements(contents),
        "tensors": describe(tensors_of(contents)),
    }
    check_json(config)
    return config


def tensors_of(contents: Contents) -> dict[str, Tensor]:
    """Return every tensor of the artifact by its name in `edit.safetensors`."""
    tensors = {"direction": contents.edit.direction}
    for path, rows in (contents.pristine or {}).items():
        tensors[f"pristine.{path}"] = rows.detach().cpu()
    if contents.alpha_crit is not None:
        tensors |= evidence.tensors(contents.alpha_crit)
    if contents.embed_dictionary and contents.dictionary is not None:
        for name, parameter in contents.dictionary.tensors.items():
            tensors[f"dictionary.{name}"] = parameter.detach().cpu()
    return tensors


def rebuild(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], pictures: Mapping[str, bytes]
) -> dict[str, Any]:
    """Return the arguments of `Contents` from a manifest that passed its schema, and tensors.

    Raises:
        ArtifactError: if the tensors are not those of the manifest, or a part contradicts another.
    """
    check_names(tensors, config["tensors"], "tensors in edit.safetensors")
    for name, said in config["tensors"].items():
        found = tensors[name]
        if found.dtype != DTYPES[said["dtype"]] or list(found.shape) != said["shape"]:
            raise ArtifactError(
                f"tensor '{name}' is {found.dtype} of shape {list(found.shape)}, the manifest "
                f"says {said['dtype']} of shape {said['shape']}; get the artifact again"
            )
    reference = config["dictionary"]
    try:
        dictionary = _dictionary(reference, tensors)
        return {
            "edit": _edit(config, tensors["direction"]),
            "dictionary": dictionary,
            "embed_dictionary": dictionary is not None,
            "dictionary_learner": reference and reference["learner"],
            "dictionary_at": Reference.from_json(reference["at"])
            if reference and reference["at"]
            else None,
            "alpha_crit": evidence.rebuild(
                config["alpha_crit"], _part(tensors, evidence.PREFIX), config["labels"]
            ),
            "evaluation": config["evaluation"],
            "pristine": _part(tensors, "pristine.") or None,
            "pictures": pictures or None,
            "labels": config["labels"],
            "data": config["data"],
        }
    except InputError as error:
        raise ArtifactError(f"the artifact contradicts itself: {error}") from error


def check_parts(contents: Contents) -> None:
    """Raise unless the parts belong together.

    Raises:
        InputError: if the dictionary is not the edit's, pristine rows do not fit the edit's base,
            a measure is missing before or after, or a value is not finite.
    """
    edit, dictionary = contents.edit, contents.dictionary
    if dictionary is not None and dictionary.digest() != edit.dictionary_digest:
        raise InputError(
            f"the dictionary {dictionary.digest()[:12]} is not the edit's "
            f"({str(edit.dictionary_digest)[:12]}); pass the one that the edit was made with"
        )
    if contents.embed_dictionary and dictionary is None:
        raise InputError("embed_dictionary=True needs the dictionary itself: pass dictionary=")
    if contents.dictionary_at is not None and edit.dictionary_digest is None:
        raise InputError("dictionary_at is given, but the edit does not come from a dictionary")
    if contents.alpha_crit is not None:
        _check_critical(contents.alpha_crit, contents.labels)
    if contents.pristine is not None:
        _check_pristine(edit, contents.pristine)
    check_measures(contents.evaluation)


def check_measures(evaluation: Measures | None) -> None:
    """Raise InputError unless the same measures are given before and after."""
    if evaluation is not None and (
        set(evaluation) != {"before", "after"}
        or set(evaluation["before"]) != set(evaluation["after"])
    ):
        raise InputError(
            "evaluation must be {'before': {...}, 'after': {...}} with the same measures in both; "
            f"got { {name: sorted(values) for name, values in evaluation.items()} }"
        )


def _check_critical(critical: AlphaCrit, labels: Sequence[str] | None) -> None:
    evidence.tensors(critical)
    if critical.classes is not None and list(critical.classes) != list(labels or ()):
        raise InputError(
            f"labels {list(labels or ())[:5]} are not the classes of the critical strengths, "
            f"{list(critical.classes)[:5]}; leave labels out to use those"
        )


def _check_pristine(edit: Edit, pristine: Mapping[str, Tensor]) -> None:
    if set(pristine) != set(edit.base.tensors):
        raise InputError(
            f"pristine rows are given for {shortened(sorted(pristine), 300)}, the edit touches "
            f"{shortened(sorted(edit.base.tensors), 300)}"
        )
    for path, rows in pristine.items():
        base = edit.base.tensors[path]
        count = base.shape[0] if edit.rows is None else len(edit.rows)
        expected = (count, prod(base.shape[1:]))
        dtype = str(rows.dtype).removeprefix("torch.")
        if tuple(rows.shape) != expected or dtype != base.dtype:
            raise InputError(
                f"pristine rows of '{path}' are {dtype}{list(rows.shape)}, the edit's base needs "
                f"{base.dtype}{list(expected)}"
            )
        if not rows.isfinite().all():
            raise InputError(f"pristine rows of '{path}' hold NaN or infinite values")
        # Only whole weights have a digest to compare with; single rows are checked on restoring.
        if edit.rows is None and sha256_tensor(rows) != base.sha256:
            raise InputError(f"pristine rows of '{path}' are not the weight of the edit's base")


def _requirements(contents: Contents) -> list[str]:
    present = {
        "alpha_crit": contents.alpha_crit is not None,
        "dictionary": contents.embed_dictionary,
        "pristine": contents.pristine is not None,
    }
    return sorted([str(contents.edit.operator), *(name for name, used in present.items() if used)])


def _dictionary_fields(contents: Contents) -> Json | None:
    if contents.edit.dictionary_digest is None:
        return None
    dictionary = contents.dictionary
    return {
        "at": None if contents.dictionary_at is None else contents.dictionary_at.to_json(),
        "digest": contents.edit.dictionary_digest,
        "learner": contents.dictionary_learner,
        "fields": fields_of(dictionary)
        if dictionary is not None and contents.embed_dictionary
        else None,
    }


def evaluation_fields(evaluation: Measures | None) -> Json | None:
    """Return an evaluation as plain JSON values."""
    if evaluation is None:
        return None
    return {moment: dict(measures) for moment, measures in evaluation.items()}


def _dictionary(reference: Json | None, tensors: Mapping[str, Tensor]) -> Dictionary | None:
    parts = _part(tensors, "dictionary.")
    fields = None if reference is None else reference["fields"]
    if reference is None or not isinstance(fields, dict):
        check_names(parts, (), "tensors of the dictionary, which is not embedded,")
        return None
    return rebuilt(str(reference["learner"]), fields, parts, reference["digest"])


def _edit(config: Mapping[str, Any], direction: Tensor) -> Edit:
    fields = {name: value for name, value in config["edit"].items() if name != "atom_norm"}
    fields["base"] = config["base"]
    fields["dictionary_digest"] = config["dictionary"] and config["dictionary"]["digest"]
    fields["dtype"] = str(direction.dtype).removeprefix("torch.")
    check_direction(direction)  # before `Edit` is made: run-time type checks would come first
    return Edit.from_parts(fields, direction)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
