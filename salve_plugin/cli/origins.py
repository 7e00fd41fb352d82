"""Where the study is that an artifact was made from: noted in the folder, for this machine alone.

The note is no part of the artifact: it is not under its seal, is never pushed, and counts only
beside the very artifact that it was written for. What is taken from it is checked like anything
else: a checkpoint must be the artifact's base, a dictionary the one that its edit comes from.
"""

import json
from pathlib import Path

from salve_plugin.cli.study import STUDY_FILE, Study
from salve_plugin.errors import InputError, ReadError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.files import write_atomically

NOTE_FILE = "local_study.json"


def note_study(folder: Path, digest: str, study: Study) -> None:
    """Note the study of an artifact or bundle that was saved in a folder.

    Raises:
        WriteError: if the folder cannot be written.
    """
    fields = {"artifact": digest, "study": str(study.folder.resolve())}
    write_atomically(folder / NOTE_FILE, json.dumps(fields, indent=1).encode() + b"\n")


def noted_study(source: str | Path, digest: str) -> Study | None:
    """Return the study that is noted beside an artifact; None if none is, or it is not there."""
    try:
        fields = json.loads((Path(source) / NOTE_FILE).read_text(encoding="utf-8"))
        if fields["artifact"] != digest:
            return None
        return Study.load(Path(fields["study"]))
    # It is only a hint: where anything is wrong with it, there is none.
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ReadError):
        return None


def study_of(folder: Path, artifact: EditArtifact) -> Study:
    """Return the study that an artifact in a folder was made from.

    Raises:
        InputError: if it is not known here.
    """
    study = noted_study(folder, artifact.digest)
    if study is None:
        raise InputError(
            f"the study that the artifact in {folder} was made from is not known here, or was "
            "moved; give the study's folder instead, with --class or --latent"
        )
    return study


def is_artifact(folder: Path) -> bool:
    """Tell whether an edit's artifact lies in a folder, and not a study."""
    return not (folder / STUDY_FILE).exists() and (folder / EditArtifact.format.manifest).exists()


def artifact_in(folder: Path) -> EditArtifact | None:
    """Return the artifact in a folder; None if no artifact is there.

    Raises:
        ArtifactError: if it is damaged.
    """
    return EditArtifact.from_pretrained(folder) if is_artifact(folder) else None


def check_own(artifact: EditArtifact, *given: object) -> None:
    """Refuse a latent, class or rows beside an artifact, which has its own.

    Raises:
        InputError: says what to give instead.
    """
    if any(option is not None for option in given):
        raise InputError(
            f"the artifact is about one edit ({artifact.edit.kind}); for another latent, class or "
            "rows give the study's folder"
        )
