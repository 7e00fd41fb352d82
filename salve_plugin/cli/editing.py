"""`salve alpha-crit` and `salve edit`."""

from pathlib import Path
from typing import cast

from salve_plugin.cli.assessments import show_assessment, show_verdict
from salve_plugin.cli.choosing import Asked, Evidence
from salve_plugin.cli.origins import artifact_in, check_own, note_study, study_of
from salve_plugin.cli.output import say, show_json, show_note, show_table
from salve_plugin.cli.overwriting import check_folder, check_outside, save
from salve_plugin.cli.pictures import of_study
from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.critical import AlphaCrit, CritGoal, alpha_crit
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate, LowRankUpdate
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact


def critical(folder: Path, asked: Asked, target: str, fraction: float, *, as_json: bool) -> None:
    """Show the critical strengths of the recorded images by class.

    Args:
        folder: of a study, or of an artifact that was made from one on this machine.
        asked: the edit; an artifact has its own.
        target: see `alpha_crit`.
        fraction: see `alpha_crit`.
        as_json: whether results are for a program.

    Raises:
        InputError: if class, latent, rows or target cannot be used, or the artifact's study is not
            known.
        SalveError: if the study cannot be read or its model is another one by now.
    """
    artifact = artifact_in(folder)
    if artifact is None:
        evidence = Evidence.of(Study.load(folder))
        edit, _ = evidence.edit(asked)
    else:
        check_own(artifact, asked.latent, asked.rows)
        evidence, edit = Evidence.of(study_of(folder, artifact)), artifact.edit
    label = evidence.label(asked)
    # An artifact is about the class that it was assessed for.
    if label is None and artifact is not None and artifact.assessment is not None:
        label = artifact.assessment.target
    crit = alpha_crit(
        evidence.opened.hooked,
        edit,
        evidence.acts,
        target=cast(CritGoal, target),  # checked there
        fraction=fraction,
        classes=None if label is None else [label],
    )
    rows = None if edit.rows is None else list(edit.rows)
    latents = list(edit.latents)
    if as_json:
        names = crit.classes
        classes = [
            {**entry.to_json(), "name": names[entry.label] if names else None}
            for entry in crit.summary()
        ]
        one = latents[0] if len(latents) == 1 else None
        show_json(
            {**crit.to_json(), "latent": one, "latents": latents, "rows": rows, "classes": classes}
        )
        return
    _show(
        crit,
        f"critical strength of {edit.kind} (target {target}, rows "
        f"{'all' if rows is None else rows})",
    )


def _show(crit: AlphaCrit, title: str) -> None:
    table = crit.as_table()
    show_table(title, table.head, table.rows)


def make(
    folder: Path,
    out: Path,
    asked: Asked,
    *,
    n_pictures: int,
    force: bool,
    as_json: bool,
) -> None:
    """Make the edit, measure it on the recorded images, and save the artifact.

    Raises:
        InputError: if class, latent, rows or strength cannot be used, none can be chosen, or
            something else lies in `out` and `force` is not given.
        SalveError: if the study cannot be read, its model is another one by now, or the artifact
            cannot be written.
    """
    study = Study.load(folder)
    check_outside(out, [study.data])
    check_folder(out)
    evidence = Evidence.of(study)
    opened, acts, dictionary = evidence.opened, evidence.acts, evidence.dictionary
    label = evidence.label(asked)
    edit, choice = evidence.edit(asked)
    if choice is None and asked.strength is None and asked.recipe is None:
        edit = _with_strength(evidence, edit, asked)
    assessment = assess(
        opened.hooked,
        edit,
        acts,
        target=None if _enhances(edit) else label,
        dictionary=dictionary,
        command=(
            "salve evaluate ARTIFACT --data FOLDER --checkpoint FILE"
            if study.spec.checkpoint
            else "salve evaluate ARTIFACT --data FOLDER"
        ),
    )
    pictures, missing = of_study(study, opened, acts, dictionary, edit, label, n_pictures)
    artifact = EditArtifact.of(
        opened.hooked,
        edit,
        dictionary=None if edit.dictionary_digest is None else dictionary,
        alpha_crit=_evidence(opened, edit, acts, label),
        assessment=assessment,
        labels=acts.classes,
        data={
            "name": f"image folder '{Path(study.data).name}'",
            "type": "imagefolder",
            "images": acts.n_images,
            "evaluated on": "the images of the dictionary",
        },
        pictures=pictures,
    )
    save(artifact, out, force=force)
    note_study(out, artifact.digest, study)
    if as_json:
        show_json(
            {"artifact": str(out), "sha256": artifact.digest, **edit.to_json(),
             "latent": edit.latents[0] if len(edit.latents) == 1 else None,
             "mode": edit.operator.mode if isinstance(edit.operator, Gate) else None,
             "strength": None if isinstance(edit.operator, LowRankUpdate) else edit.strength,
             "assessment": assessment.to_json(), "evaluation": artifact.evaluation,
             "verdict": assessment.verdict, "pictures": sorted(artifact.pictures or {}),
             "no_pictures": missing, "choice": None if choice is None else choice.to_json()}
        )  # fmt: skip
        return
    show_assessment(
        assessment,
        f"{edit.kind}: {edit.amount}, rows {'all' if edit.rows is None else list(edit.rows)}",
        acts.classes,
    )
    if choice is not None:
        show_verdict(choice)
    if missing is not None:
        show_note(missing)
    say(f"Saved in {out} ({artifact.digest[:12]}).")


def _with_strength(evidence: Evidence, edit: Edit, asked: Asked) -> Edit:
    """Return the edit whose latent the user chose, with the strength that the class needs."""
    label = evidence.label(asked)
    if asked.enhancing or label is None:
        raise InputError("give a --strength: only for suppressing a --class can it be read off")
    crit = alpha_crit(evidence.opened.hooked, edit, evidence.acts, target="flip", classes=[label])
    needed = crit.strength_for(label, 0.95)
    if needed == float("inf"):
        raise InputError(
            f"no strength of latent {edit.latent} on these rows breaks 95 % of the class's images; "
            "leave out --latent to have one chosen, or try other --rows"
        )
    return edit.with_strength(needed * (1 + 1e-4))  # just beyond: at the root itself logits tie


def _evidence(
    opened: OpenModel, edit: Edit, acts: Activations, label: int | None
) -> AlphaCrit | None:
    # What is enhanced loses no decision at any strength; an update has no strength.
    if _enhances(edit) or isinstance(edit.operator, LowRankUpdate):
        return None
    classes = None if label is None else [label]
    return alpha_crit(opened.hooked, edit, acts, target="flip", classes=classes)


def _enhances(edit: Edit) -> bool:
    return isinstance(edit.operator, Gate) and edit.operator.mode == "enhance"
