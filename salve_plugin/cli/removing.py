"""`salve edit --remove WITH --without WITHOUT`: a concept found in two folders, and removed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from salve_plugin.cli.artifacts import labels_of
from salve_plugin.cli.assessments import show_assessment, show_verdict
from salve_plugin.cli.images import ImageTree
from salve_plugin.cli.origins import note_study
from salve_plugin.cli.output import say, show_json, show_table
from salve_plugin.cli.overwriting import check_folder, check_outside, save
from salve_plugin.cli.studies import left_out_of
from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.choosing.candidate import Choice
from salve_plugin.control.choosing.choose import choose
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut
from salve_plugin.control.concepts.concept import Concept
from salve_plugin.control.concepts.finding import find_concept
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.stream import record
from salve_plugin.hooks import HookedModel
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.owner import scratch

SHOWN = 12
"""Candidates in the table; --json has them all."""

BATCH = 64

UNSEEN = "each image with edits that were not fitted on it"
"""How hidden edits are measured."""


@dataclass(frozen=True)
class Removal:
    """What is to be removed.

    Attributes:
        with_folder: images that have it, one subfolder a class.
        without_folder: images that do not; the same names are taken for pairs.
        max_harm: see `RemoveConcept`.
        hidden: whether hidden layers may be edited, too.
        skip_unreadable: whether images that cannot be read are left out.
    """

    with_folder: Path
    without_folder: Path
    max_harm: float = 0.01
    hidden: bool = False
    skip_unreadable: bool = False


def remove(folder: Path, out: Path, removal: Removal, *, force: bool, as_json: bool) -> None:
    """Find the concept, choose its edit, measure it, and save the artifact.

    Raises:
        InputError: if the folders do not fit the study's classes, hold too few images, or tell
            nothing; or something else lies in `out` and `force` is not given.
        SalveError: if the study cannot be read, its model is another one by now, or the artifact
            cannot be written.
    """
    study = Study.load(folder)
    check_outside(out, [study.data, removal.with_folder, removal.without_folder])
    check_folder(out)
    acts = Activations.load(study.activations_folder)
    opened = study.open(acts)
    folders = (removal.with_folder, removal.without_folder)
    left_out = [left_out_of(each, removal.skip_unreadable, as_json=as_json) for each in folders]
    trees = [
        opened.images(each, labels=acts.classes, left_out=names)
        for each, names in zip(folders, left_out, strict=True)
    ]
    paired = _names(trees[0], removal.with_folder) == _names(trees[1], removal.without_folder)
    with scratch("recordings") as temporary:
        recordings = [
            record(
                opened.hooked, tree.batches(BATCH), folder=temporary / str(number),
                progress=False, classes=tree.classes,
            )
            for number, tree in enumerate(trees)
        ]  # fmt: skip
        # Images of one name are a group: held out together, else one of a pair would tell the
        # other.
        everyone = [*range(len(trees[0])), *range(len(trees[1]))]
        concept = find_concept(
            recordings[0],
            without=recordings[1],
            groups=everyone if paired else range(len(everyone)),
            name=removal.with_folder.name,
        )
        goal: RemoveConcept | RemoveShortcut = (
            RemoveConcept(concept, max_harm=removal.max_harm)
            if concept.is_paired and paired
            else RemoveShortcut(concept, max_harm=removal.max_harm)
        )
        # The classifier's edits follow from the recordings; what hidden ones do only the network
        # tells.
        images = [tree.batches(BATCH) for tree in trees] if removal.hidden else []
        choice = choose(opened.hooked, goal, images=images)
        made = (
            bundle_of(opened.hooked, choice, trees[0].classes, _data(study, concept, UNSEEN))
            if choice.chosen.hidden
            else _artifact(opened, study, choice, concept, trees, paired=paired)
        )
    save(made, out, force=force)
    note_study(out, made.digest, study)
    _show(made, choice, concept, out, as_json=as_json)


def _names(tree: ImageTree, folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path, _ in tree.samples]


def _artifact(
    opened: OpenModel, study: Study, choice: Choice, concept: Concept, trees: list[ImageTree],
    *, paired: bool,
) -> EditArtifact:  # fmt: skip
    with_, without = trees
    if paired:
        assessment = assess(
            opened.hooked, choice.edit, with_.batches(BATCH), counterparts=without.batches(BATCH),
            classes=with_.classes,
        )  # fmt: skip
    else:
        both: DataLoader[tuple[Tensor, int]] = DataLoader(
            ConcatDataset([with_, without]), batch_size=BATCH, shuffle=False
        )
        has = torch.arange(len(with_) + len(without)) < len(with_)
        assessment = assess(opened.hooked, choice.edit, both, has=has, classes=with_.classes)
    return EditArtifact.of(
        opened.hooked,
        choice.edit,
        assessment=assessment,
        labels=with_.classes,
        data=_data(study, concept, "the images that the edit was chosen on"),
    )


def bundle_of(
    hooked: HookedModel, choice: Choice, classes: Sequence[str],
    data: dict[str, str | int | float | bool | None],
) -> EditBundle:  # fmt: skip
    """Return the classifier's edit and those of hidden sites, with what all do together.

    Args:
        hooked: the attached model.
        choice: with hidden edits.
        classes: a name for every class of the model.
        data: what the choice was made on.
    """
    # Members are folders of the bundle, and are called as such may be.
    members = {
        re.sub(r"[^a-z0-9_-]", "-", edit.site.name.lower()): EditArtifact.of(
            hooked, edit, labels=classes
        )
        for edit in choice.edits
    }
    before, *_ = choice.tried  # no edit
    evaluation = {"before": dict(before.figures), "after": dict(choice.chosen.figures)}
    return EditBundle.of(hooked, members, evaluation=evaluation, data=data)


def _data(study: Study, concept: Concept, how: str) -> dict[str, str | int | float | bool | None]:
    return {
        "name": f"image folders with and without '{concept.name}'",
        "type": "imagefolder",
        "images": concept.n_images,
        "evaluated on": how,
        "study": Path(study.data).name,
    }


def _show(
    made: EditArtifact | EditBundle, choice: Choice, concept: Concept, out: Path, *, as_json: bool
) -> None:
    # A bundle has no assessment: its evaluation is what was measured of the choice.
    assessment = made.assessment if isinstance(made, EditArtifact) else None
    if as_json:
        show_json(
            {"artifact": str(out), "sha256": made.digest, "concept": concept.note,
             "choice": choice.to_json(),
             "assessment": None if assessment is None else assessment.to_json(),
             "verdict": choice.verdict}
        )  # fmt: skip
        return
    best = sorted(choice.tried, key=lambda one: (-one.effect, one.harm))[:SHOWN]
    show_table(
        f"candidates on images that they were not fitted on ({type(choice.goal).__name__})",
        ("edit", "effect", "harm", *best[0].figures),
        [(one.method, one.effect, one.harm, *one.figures.values()) for one in best],
    )
    if assessment is not None:
        show_assessment(assessment, f"chosen: {choice.chosen.method}", labels_of(made))
    say(concept.note)
    show_verdict(choice)
    say(f"Saved in {out} ({made.digest[:12]}).")
