"""`salve evaluate`: an artifact's assessment, measured again and compared."""

from pathlib import Path

from salve_plugin.cli.artifacts import base_of, edits_at
from salve_plugin.cli.assessments import show_assessment
from salve_plugin.cli.origins import noted_study
from salve_plugin.cli.output import say, show_json, show_table
from salve_plugin.cli.studies import left_out_of
from salve_plugin.control.assessment.reassess import TOLERANCE, deviations, reassess
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import ArtifactError, InputError, ReadError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.source import Where


def evaluate(
    source: str,
    where: Where,
    data: Path,
    model: str | None,
    checkpoint: Path | None,
    num_classes: int | None,
    *,
    skip_unreadable: bool,
    as_json: bool,
) -> bool:
    """Assess an artifact's edit again and say whether it comes out as the artifact says.

    Raises:
        InputError: if a bundle lies there, or the artifact has no assessment that can be repeated.
        SalveError: if anything cannot be read, or the base model is another one.
    """
    _, shared = edits_at(source, where)
    if not isinstance(shared, EditArtifact):
        raise InputError(
            f"{source} holds a bundle; evaluate its members one by one: --subfolder NAME"
        )
    stored = shared.assessment
    if stored is None:
        raise InputError(
            f"{source} has no assessment that could be repeated; `salve apply --data` measures one"
        )
    opened = base_of(source, shared, model, checkpoint, num_classes)
    left_out = left_out_of(data, skip_unreadable, as_json=as_json)
    loader = opened.images(data, labels=shared.labels, left_out=left_out).batches(64)
    dictionary = _dictionary(source, shared)
    measured = reassess(opened.hooked, shared.edit, stored, loader, dictionary)
    different = deviations(stored, measured)
    if as_json:
        show_json(
            {
                "artifact": shared.digest,
                "same": not different,
                "tolerance": TOLERANCE,
                "left_out": left_out,
                "different": [each.to_json() for each in different],
                "assessment": measured.to_json(),
                "verdict": measured.verdict,
            }
        )
        return not different
    show_assessment(measured, f"edit of {source}, measured again", shared.labels)
    if different:
        rows = [(each.field, str(each.stored), str(each.measured)) for each in different]
        show_table("what differs", ("field", "in the artifact", "measured now"), rows)
    # Missing is not different: nothing contradicts the artifact, but the user should know.
    if stored.predictions and not measured.predictions:
        say(
            "What its dictionary's codes predict was not measured again: the dictionary is neither "
            "in the artifact nor in a study on this machine."
        )
    said = f"{len(different)} values differ" if different else "It is as the artifact says"
    say(f"{said} (tolerance {TOLERANCE:g}).")
    return not different


def _dictionary(source: str, shared: EditArtifact) -> Dictionary | None:
    """Return the dictionary that the edit is from, where nothing has to be fetched for it."""
    study = noted_study(source, shared.digest)
    if shared.dictionary is not None or study is None:
        return shared.dictionary
    try:
        dictionary = Dictionary.from_pretrained(study.dictionary_folder)
    except (ReadError, ArtifactError):  # it is not needed for the edit's own numbers
        return None
    return dictionary if dictionary.digest == shared.edit.dictionary_digest else None
