"""An atlas takes the place of its own earlier self and of nothing else."""

import json
from pathlib import Path

import pytest

from salve_plugin.errors import InputError
from salve_plugin.report.folder import MANIFEST, save

FILES = {"index.html": b"<!doctype html>", "data/index.js": b"1", "data/latents/0.js": b"2"}
ABOUT = {"dictionary": "a"}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_atlas_is_written_and_replaced_by_itself(tmp_path: Path) -> None:
    folder = save(tmp_path / "atlas", FILES, ABOUT, force=False)
    before = contents(folder)
    assert set(before) == {*FILES, MANIFEST}
    save(folder, FILES, ABOUT, force=False)
    assert contents(folder) == before
    save(folder, {"index.html": b"new", "data/index.js": b"1"}, ABOUT, force=False)
    assert contents(folder).keys() == {"index.html", "data/index.js", MANIFEST}
    assert not (folder / "data" / "latents").exists()


def test_nothing_of_somebody_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(InputError, match=r"holds index\.html, which is not as an atlas wrote it"):
        save(tmp_path, FILES, ABOUT, force=False)
    assert contents(tmp_path) == {"index.html": b"mine"}
    save(tmp_path, FILES, ABOUT, force=True)
    assert (tmp_path / "index.html").read_bytes() == FILES["index.html"]


def test_what_was_changed_since_is_not_overwritten_nor_removed(tmp_path: Path) -> None:
    save(tmp_path, FILES, ABOUT, force=False)
    (tmp_path / "data" / "latents" / "0.js").write_text("notes of mine")
    with pytest.raises(InputError, match=r"data/latents/0\.js, which is not as an atlas wrote it"):
        save(tmp_path, FILES, ABOUT, force=False)
    save(tmp_path, {"index.html": b"new"}, ABOUT, force=False)
    assert (tmp_path / "data" / "latents" / "0.js").read_text() == "notes of mine"
    assert not (tmp_path / "data" / "index.js").exists()


def test_files_beside_the_atlas_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save(tmp_path, FILES, ABOUT, force=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_atlas_of_another_study_is_not_replaced_unasked(tmp_path: Path) -> None:
    save(tmp_path, FILES, ABOUT, force=False)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="the atlas of another study"):
        save(tmp_path, FILES, {"dictionary": "b"}, force=False)
    assert contents(tmp_path) == before
    save(tmp_path, FILES, {"dictionary": "b"}, force=True)
    assert json.loads((tmp_path / MANIFEST).read_text())["about"] == {"dictionary": "b"}


@pytest.mark.parametrize("name", ["../precious.txt", "precious.txt", "data/../../precious.txt"])
def test_a_forged_manifest_leads_to_no_other_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "atlas"
    save(folder, FILES, ABOUT, force=False)
    for place in (tmp_path, folder):
        (place / "precious.txt").write_bytes(FILES["data/index.js"])
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = manifest["files"]["data/index.js"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    save(folder, FILES, ABOUT, force=False)
    assert (tmp_path / "precious.txt").exists()
    assert (folder / "precious.txt").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}', '{"files": {}}'])
def test_a_damaged_manifest_is_somebody_elses_file(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"holds atlas\.json, which"):
        save(tmp_path, FILES, ABOUT, force=False)
    assert (tmp_path / MANIFEST).read_text() == text
