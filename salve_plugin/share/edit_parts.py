"""Whether an edit and the evidence that comes with it belong together."""

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import touched_rows
from salve_plugin.control.operators import Gate
from salve_plugin.control.operators.base import real
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.network import check_one_network
from salve_plugin.share import evidence
from salve_plugin.share.model_state import is_plain
from salve_plugin.site import HEAD_INPUT, Site
from salve_plugin.store.digest import sha256_tensor
from salve_plugin.store.hub.address import Origin
from salve_plugin.store.json import shortened
from salve_plugin.store.reference import Reference

Measures = Mapping[str, Mapping[str, int | float]]
"""Numbers by name, before and after an edit: {"before": {...}, "after": {...}}."""


KINDS: Mapping[str, type] = {
    "edit": Edit, "dictionary": Dictionary, "dictionary_learner": str, "dictionary_at": Reference,
    "alpha_crit": AlphaCrit, "assessment": Assessment, "evaluation": Mapping, "pristine": Mapping,
    "pictures": Mapping, "labels": Sequence, "data": Mapping, "origin": Origin,
}  # fmt: skip
"""Of what kind a part is, by its name."""


def class_count(edit: Edit) -> int | None:
    """Return the number of classes, where the edit touches the classifier and so tells."""
    if edit.site.name != HEAD_INPUT:
        return None
    # A row number means the same output of every layer that reads the site.
    shapes = edit.base.tensors
    rows = min(target.n_outputs(shapes[target.weight].shape) for target in edit.targets)
    return max(2, rows)  # one logit has two sides


def check_kinds(whole: object) -> None:
    """Raise InputError unless each part of an artifact or a bundle is of its kind, or None."""
    for name, part in vars(whole).items():
        kind = KINDS.get(name, object)
        if not isinstance(part, kind) and (part is not None or name == "edit"):
            # Critical strengths that were searched for, for example, which are another kind.
            raise InputError(f"{name} is {part!r:.80}; expected {kind.__name__}")


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
    # To the bit: a direction is a copy of its atom.
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


def check_measures(evaluation: Measures | None) -> None:
    """Raise InputError unless the same measures are given before and after, all finite."""
    if evaluation is not None and (
        set(evaluation) != {"before", "after"}
        or not all(isinstance(measures, Mapping) for measures in evaluation.values())
        or set(evaluation["before"]) != set(evaluation["after"])
    ):
        raise InputError(
            "evaluation must be {'before': {...}, 'after': {...}} with the same measures in both; "
            f"got {shortened(evaluation, 300)}"
        )
    for moment, measures in (evaluation or {}).items():
        wrong = {name: value for name, value in measures.items() if not isfinite(real(value, name))}
        if wrong:
            raise InputError(f"evaluation has {moment} the edit {wrong}; give finite numbers")


def check_classes(edit: Edit, labels: Sequence[str] | None, critical: AlphaCrit | None) -> None:
    """Raise unless labels, critical strengths and the rows of the classifier go together.

    Raises:
        InputError: names the two that do not.
    """
    count = class_count(edit)
    # A text is a sequence of texts, too: its letters would pass for names.
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
        raise InputError(f"labels {shortened(labels)} are to be a list of names, one a class")
    if labels is not None and count is not None and len(labels) > count:
        raise InputError(
            f"there are {len(labels)} labels for a classifier of {count} classes; give one a class"
        )
    if critical is None:
        return
    values = evidence.tensors(critical)
    if critical.classes is not None and list(critical.classes) != list(labels or ()):
        raise InputError(
            f"labels {list(labels or ())[:5]} are not the classes of the critical strengths, "
            f"{list(critical.classes)[:5]}; leave labels out to use those"
        )
    named = count if labels is None else len(labels)
    for name, most in (("labels", named), ("predicted", count)):
        highest = int(values[name].max()) if values[name].numel() else 0
        if most is not None and highest >= most:
            raise InputError(
                f"the critical strengths have {name} up to {highest}, where classes are numbered "
                f"from 0 to {most - 1}; compute them with this model's alpha_crit"
            )


def check_assessment(
    edit: Edit,
    assessment: Assessment,
    labels: Sequence[str] | None,
    evaluation: Measures,
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
    last = max(max(each.label, each.destination or 0) for each in assessment.classes)
    if count is not None and last >= count:
        raise InputError(
            f"the assessment has class {last}, where classes are numbered from 0 to {count - 1}"
        )
    for outcome in assessment.classes:
        # Either may have no name for a class; where both have one it is the same.
        known = labels is not None and outcome.label < len(labels)
        name = labels[outcome.label] if labels is not None and known else outcome.name
        if outcome.name is not None and outcome.name != name:
            raise InputError(
                f"class {outcome.label} is {shortened(outcome.name)} in the assessment, "
                f"{shortened(name)} among the labels"
            )
    for moment, measures in assessment.measures.items():
        for name in measures.keys() & evaluation.get(moment, {}).keys():
            # To the bit, as one is taken from the other: what is only near was measured another
            # time.
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
    # Without readers and writers: an edit names tied layers once, a dictionary as they were
    # attached.
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
        if not is_plain(rows):
            raise InputError(
                f"pristine rows of '{path}' are {rows!r:.80}; expected a dense tensor in memory"
            )
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
