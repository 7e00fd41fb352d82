"""The edit in a manifest: its typed fields, and whether edit and evidence belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from msgspec import UNSET, Meta, UnsetType
from torch import Tensor

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.base import Base
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import touched_rows
from salve_plugin.control.operators import Gate
from salve_plugin.control.provenance import Exactness, Provenance
from salve_plugin.control.targets import Target
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.network import check_one_network
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.store.digest import sha256_tensor
from salve_plugin.store.json import shortened
from salve_plugin.store.record import Index, Record

Rows = Annotated[
    list[Index],
    Meta(min_length=1, max_length=1_000_000, extra_json_schema={"uniqueItems": True}),
]


@dataclass(frozen=True)
class OperatorFields(Record):
    """What an edit does, but for its tensors `edit.*`.

    Attributes:
        form: gate: feature j of the site is multiplied by max(0, 1 - strength reach_j) (suppress)
            or 1 + strength reach_j (enhance); reach is the root of the sum of the squares of the
            rows of `edit.directions`. low_rank_map: x' = x + (scale - 1) U (V^T x - c) with the
            tensors write U, read V and offset c. low_rank_update: W' = W + A B^T, b' = b + d with
            the tensors left A, right B and shift d.
        mode: of a gate.
        scale: of a low-rank map: 0 removes, 1 changes nothing.
        strength: of a gate, in units of its directions.
    """

    form: Literal["gate", "low_rank_map", "low_rank_update"]
    mode: Literal["enhance", "suppress"] | UnsetType = UNSET
    scale: float | UnsetType = UNSET
    strength: Annotated[float, Meta(ge=0)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Check that these are the numbers of the form and of no other; cards rely on it.

        Raises:
            InputError: names those that are there and those that the form has.
        """
        expected = {"gate": ["mode", "strength"], "low_rank_map": ["scale"]}.get(self.form, [])
        there = [name for name in ("mode", "scale", "strength") if getattr(self, name) is not UNSET]
        if there != expected:
            raise InputError(f"operator '{self.form}' has the numbers {there}, expected {expected}")


@dataclass(frozen=True)
class EditFields(Record):
    """An edit but for its tensors.

    Attributes:
        base: the model that it was made for: what it touches, and one digest over everything.
        exactness: how exactly the weights reproduce the change at a hidden site, as measured.
        operator: what it does.
        provenance: where the operator's directions come from.
        rows: the outputs of the readers (classes) that change, ascending; null for all.
        site: the activation that changes.
        targets: the parameters that take the change over.
    """

    base: Base
    exactness: Exactness | None
    operator: OperatorFields
    provenance: Provenance
    rows: Rows | None
    site: Site
    targets: Annotated[list[Target], Meta(min_length=1, max_length=256)]

    def __post_init__(self) -> None:
        """Check what types cannot say.

        Raises:
            InputError: if a row is named twice.
        """
        if self.rows is not None and len(set(self.rows)) < len(self.rows):
            raise InputError("a row is named twice; expected rows that differ from each other")


def class_count(edit: Edit) -> int | None:
    """Return the number of classes, where the edit touches the classifier and so tells."""
    if edit.site.name != HEAD_INPUT:
        return None
    shapes = edit.base.tensors
    return min(target.n_outputs(shapes[target.weight].shape) for target in edit.targets)


def check_source(edit: Edit, dictionary: Dictionary) -> None:
    """Raise unless the edit is what the dictionary makes it: same site, directions its atoms.

    Raises:
        InputError: says what is another one.
    """
    if dictionary.digest != edit.dictionary_digest:
        raise InputError(
            f"the dictionary {dictionary.digest[:12]} is not the edit's "
            f"({str(edit.dictionary_digest)[:12]}); pass the one that the edit was made with"
        )
    if _place(edit.site) != _place(dictionary.site):
        raise InputError(
            f"the edit is at {_place(edit.site)}, its dictionary reads {_place(dictionary.site)}; "
            "make the edit with suppress or enhance"
        )
    wrong = [latent for latent in edit.latents if latent >= dictionary.n_latents]
    if wrong:
        raise InputError(
            f"the edit names latent {wrong[0]}, its dictionary has {dictionary.n_latents}; make "
            "the edit with suppress or enhance"
        )
    if not isinstance(edit.operator, Gate) or not edit.latents:
        return
    directions = edit.operator.directions
    atoms = dictionary.atoms[list(edit.latents)].detach().cpu().to(directions.dtype)
    if not torch.equal(atoms, directions):
        raise InputError(
            f"the edit's direction is not atom {list(edit.latents)} of its dictionary; make the "
            "edit with suppress or enhance, or leave out its dictionary"
        )


def check_critical(edit: Edit, critical: AlphaCrit) -> None:
    """Raise InputError unless critical strengths are those of the edit's own family."""
    if critical.family != edit.family:
        raise InputError(
            f"the critical strengths are of another edit: of {critical.family[:12]}, this one is "
            f"of the family {edit.family[:12]}; compute them with alpha_crit(hooked, edit, acts)"
        )


def check_assessment(
    edit: Edit,
    assessment: Assessment,
    labels: Sequence[str] | None,
    evaluation: Mapping[str, Mapping[str, int | float]],
) -> None:
    """Raise unless an assessment is of this edit on its base, and says what the other parts say.

    Raises:
        InputError: names the two that contradict each other.
    """
    if assessment.edit != edit.digest:
        raise InputError(
            f"the assessment is of edit {assessment.edit[:12]}, this one is {edit.digest[:12]}; "
            "measure it with assess(hooked, edit, data)"
        )
    base, model = edit.base.state, assessment.evidence.model
    if base is not None and model != base:
        raise InputError(
            f"the assessment is of the model {model[:12]}, the edit's base is {base[:12]}; assess "
            "the edit on the base, without other edits on it"
        )
    paths = [each.path for each in assessment.budget.parameters]
    if paths != sorted(edit.base.tensors):
        raise InputError(
            f"the assessment has the budget of {shortened(paths, 300)}, the edit touches "
            f"{shortened(sorted(edit.base.tensors), 300)}"
        )
    predicted = assessment.predictions[-1].latents if assessment.predictions else None
    if predicted is not None and predicted != tuple(dict.fromkeys(edit.latents)):
        raise InputError(
            f"the assessment has predictions from latents {shortened(predicted, 300)}, the edit is "
            f"about {shortened(edit.latents, 300)}"
        )
    count = class_count(edit)
    if count is not None and any(each.label >= count for each in assessment.classes):
        raise InputError(
            f"the assessment has class {assessment.classes[-1].label}, where classes are numbered "
            f"from 0 to {count - 1}"
        )
    for outcome in assessment.classes:
        known = labels is not None and outcome.label < len(labels)
        name = labels[outcome.label] if labels is not None and known else outcome.name
        if outcome.name is not None and outcome.name != name:
            raise InputError(
                f"class {outcome.label} is {shortened(outcome.name)} in the assessment, "
                f"{shortened(name)} among the labels"
            )
    for moment, measures in assessment.measures.items():
        for name in measures.keys() & evaluation.get(moment, {}).keys():
            if evaluation[moment][name] != measures[name]:
                raise InputError(
                    f"the {name} {moment} the edit is {evaluation[moment][name]} in the "
                    f"evaluation, {measures[name]} in the assessment; leave the evaluation out"
                )


def check_networks(edit: Edit, dictionary: Dictionary | None, critical: AlphaCrit | None) -> None:
    """Raise unless an edit and its evidence are of one network, as far as is known.

    Raises:
        BaseMismatchError: says which two are not.
    """
    parts = {
        "the edit's base": edit.base.network,
        "the dictionary": None if dictionary is None else dictionary.network,
        "the critical strengths": None if critical is None else critical.network,
    }
    remedy = (
        "an artifact takes what is of the edit's base, the model without any edit: leave out the "
        "other, or make it from that model"
    )
    check_one_network(parts, remedy=remedy)


def _place(site: Site) -> tuple[object, ...]:
    return (site.name, site.module, site.side, site.layout, site.width, site.prefix_tokens)


def check_pristine(edit: Edit, pristine: Mapping[str, Tensor]) -> None:
    """Raise unless these are the touched rows of the edit's base, by path, as far as it shows.

    Raises:
        InputError: names the path.
    """
    if set(pristine) != set(edit.base.tensors):
        raise InputError(
            f"pristine rows are given for {shortened(sorted(pristine), 300)}, the edit touches "
            f"{shortened(sorted(edit.base.tensors), 300)}"
        )
    for path, rows in pristine.items():
        base, touched = edit.base.tensors[path], touched_rows(edit, path)
        expected = (base.shape[0] if touched is None else len(touched), *base.shape[1:])
        dtype = str(rows.dtype).removeprefix("torch.")
        if tuple(rows.shape) != expected or dtype != base.dtype:
            raise InputError(
                f"pristine rows of '{path}' are {dtype}{list(rows.shape)}, the edit's base needs "
                f"{base.dtype}{list(expected)}"
            )
        if not rows.isfinite().all():
            raise InputError(f"pristine rows of '{path}' hold NaN or infinite values")
        # Only whole tensors have a digest to compare with; single rows are checked on restoring.
        if touched is None and sha256_tensor(rows) != base.sha256:
            raise InputError(f"pristine rows of '{path}' are not the weight of the edit's base")
