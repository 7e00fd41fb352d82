"""`salve alpha-crit` and `salve edit`."""

from pathlib import Path
from typing import cast

from salve_plugin.cli.assessments import show_assessment
from salve_plugin.cli.output import console, show_json, show_table
from salve_plugin.cli.overwriting import check_outside, save
from salve_plugin.cli.pictures import of_study
from salve_plugin.cli.studies import label_of, latent_of
from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.choosing.choose import choose
from salve_plugin.control.choosing.goals import RowChoice, SuppressClass
from salve_plugin.control.critical import AlphaCrit, CritGoal, alpha_crit
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import enhance, suppress
from salve_plugin.control.rivals import with_rivals
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact


def critical(
    folder: Path,
    class_name: str | None,
    latent: int | None,
    rows: str,
    target: str,
    fraction: float,
    *,
    as_json: bool,
) -> None:
    """Show the critical strengths of the recorded images by class.

    Raises:
        InputError: if class, latent, rows or target cannot be used.
        SalveError: if the study cannot be read or its model is another one by now.
    """
    study = Study.load(folder)
    acts, dictionary, features = study.parts()
    chosen_latent = latent_of(features, dictionary, class_name, latent)
    label = None if class_name is None else label_of(features, class_name)
    row_choice = _rows(rows, label)
    if row_choice == "rivals":
        raise InputError("alpha-crit takes --rows all, class or indices, not rivals")
    opened = study.open(acts)
    edit = suppress(opened.hooked, dictionary, latent=chosen_latent, strength=0.0, rows=row_choice)
    crit = alpha_crit(
        opened.hooked,
        edit,
        acts,
        target=cast(CritGoal, target),  # checked there
        fraction=fraction,
        classes=None if label is None else [label],
    )
    if as_json:
        show_json({"latent": chosen_latent, "rows": row_choice, **crit.to_json()})
        return
    _show(crit, f"critical strength of latent {chosen_latent} (target {target}, rows {rows})")


def _show(crit: AlphaCrit, title: str) -> None:
    table = crit.as_table()
    show_table(title, table.head, table.rows)


def _rows(rows: str, label: int | None) -> RowChoice:
    if rows == "all":
        return None
    if rows in ("class", "rivals"):
        if label is None:
            raise InputError(f"--rows {rows} needs --class")
        return "rivals" if rows == "rivals" else (label,)
    try:
        return tuple(int(index) for index in rows.split(","))
    except ValueError as error:
        raise InputError(
            f"--rows {rows!r} is unknown; use all, class, rivals, or indices such as 3,5"
        ) from error


def make(
    folder: Path,
    out: Path,
    class_name: str | None,
    latent: int | None,
    strength: float | None,
    rows: str | None,
    *,
    enhance: bool,
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
    acts, dictionary, features = study.parts()
    label = None if class_name is None else label_of(features, class_name)
    rows = rows or ("all" if label is None else "class" if enhance else "rivals")
    opened = study.open(acts)
    if enhance or latent is not None or strength is not None:
        chosen_latent = latent_of(features, dictionary, class_name, latent)
        edit = _named(
            opened, dictionary, acts, chosen_latent, strength, _rows(rows, label), label, enhance
        )
    else:
        edit = _chosen(opened, dictionary, acts, features, label, _rows(rows, label))
    assessment = assess(
        opened.hooked,
        edit,
        acts,
        target=None if enhance else label,
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
        dictionary=dictionary,
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
    if as_json:
        show_json(
            {"artifact": str(out), "sha256": artifact.digest, **edit.to_json(),
             "latent": edit.latent, "mode": edit.gate.mode, "strength": edit.gate.strength,
             "assessment": assessment.to_json(), "evaluation": artifact.evaluation,
             "verdict": assessment.verdict, "pictures": sorted(artifact.pictures or {})}
        )  # fmt: skip
        return
    show_assessment(
        assessment,
        f"edit of latent {edit.latent}: {edit.gate.mode}, α = {edit.gate.strength:.4g}, "
        f"rows {'all' if edit.rows is None else list(edit.rows)}",
    )
    if missing is not None:
        console(stderr=True).print(missing, highlight=False, markup=False)
    console().print(f"Saved in {out} ({artifact.digest[:12]}).", highlight=False)


def _chosen(
    opened: OpenModel,
    dictionary: Dictionary,
    acts: Activations,
    features: Features,
    label: int | None,
    rows: RowChoice,
) -> Edit:
    if label is None:
        raise InputError("name a class (--class), or a latent and a strength")
    goal = SuppressClass(label, by="latents", rows=rows)
    return choose(opened.hooked, goal, acts, dictionary=dictionary, features=features).edit


def _named(
    opened: OpenModel,
    dictionary: Dictionary,
    acts: Activations,
    latent: int,
    strength: float | None,
    rows: RowChoice,
    label: int | None,
    enhancing: bool,
) -> Edit:
    """Return the edit whose latent the user chose; its strength too, or else read off."""
    operator = enhance if enhancing else suppress
    fixed = None if rows == "rivals" else rows
    edit = operator(opened.hooked, dictionary, latent=latent, strength=strength or 0.0, rows=fixed)
    if rows == "rivals":
        if enhancing:
            raise InputError("--rows rivals is for suppressing: give class, all or indices")
        assert label is not None  # `_rows` saw to that
        head, recorded = opened.hooked.unembed(edit.site), (acts.tensor(), acts.labels())
        tried = None if strength is None else [strength]
        edit = with_rivals(edit, *head, recorded, label, tried)
    if strength is not None:
        return edit
    if enhancing or label is None:
        raise InputError("give a --strength: only for suppressing a --class can it be read off")
    crit = alpha_crit(opened.hooked, edit, acts, target="flip", classes=[label])
    needed = crit.strength_for(label, 0.95)
    if needed == float("inf"):
        raise InputError(
            f"no strength of latent {latent} on these rows breaks 95 % of the class's images; "
            "leave out --latent to have one chosen, or try other --rows"
        )
    return edit.with_strength(needed * (1 + 1e-4))  # just beyond: at the root itself logits tie


def _evidence(
    opened: OpenModel, edit: Edit, acts: Activations, label: int | None
) -> AlphaCrit | None:
    if edit.gate.mode == "enhance":
        return None
    classes = None if label is None else [label]
    return alpha_crit(opened.hooked, edit, acts, target="flip", classes=classes)
