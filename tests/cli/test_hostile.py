"""Artifacts whose texts are written to fool the command, its user or the terminal."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_artifacts import small_artifact

from salve_plugin.cli import main
from salve_plugin.control.base import Base
from salve_plugin.share.artifact import EditArtifact

EVIL = "[/red][link=https://example.org]x\x1b[2J\x1b]0;owned\x07\r\n\u202egnp"


def hostile(folder: Path, **description: object) -> Path:
    """Save an artifact whose free texts are evil and whose base is described so."""
    tiny = small_artifact()
    base = Base({"architecture": "Tiny", **description}, tiny.edit.base.tensors)
    artifact = EditArtifact(
        replace(tiny.edit, base=base), labels=(EVIL,), data={EVIL: EVIL}, pristine=tiny.pristine
    )
    return artifact.save_pretrained(folder)


def test_an_artifacts_words_are_shown_and_not_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(hostile(tmp_path / "evil", note=EVIL))])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert all(line.isprintable() for line in shown.split("\n"))
    assert "\\x1b[2J" in shown
    assert "[link=https://example.org]" in shown.replace("\n", "")


def test_a_folders_name_is_shown_and_not_obeyed(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a[/red]\x1b[2J"
    with pytest.raises(SystemExit) as ended:
        main(["edit", str(study), "--class", "3", "--pictures", "0", "--out", str(out)])
    assert not ended.value.code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"Saved in {tmp_path}/a[/red]\\x1b[2J (")


@pytest.mark.parametrize(
    "description",
    [
        {"architecture": "hf-hub:mallory/model"},
        {"architecture": "local-dir:/etc"},
        {"architecture": "resnet18", "pretrained_tag": "x@y:z"},
        {"architecture": "../model"},
    ],
)
def test_an_artifact_cannot_choose_where_its_base_comes_from(
    description: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hostile(tmp_path / "evil", **description)
    arguments = ["apply", str(folder), "--out", str(tmp_path / "out.safetensors")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert "not the plain name" in capsys.readouterr().err.replace("\n", " ")
