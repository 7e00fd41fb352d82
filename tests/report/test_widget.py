"""An atlas in a notebook, as far as Python goes; `test_jupyterlab.py` shows it in one."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_study import Small

import salve_plugin as salve
from salve_plugin.errors import ArtifactError, InputError, MissingExtraError, MissingFileError
from salve_plugin.report.folder import Pages
from salve_plugin.report.scripts import provided, script

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("atlas")
    salve.atlas(small.hooked, small.dictionary, small.acts, place, bench_images=20)
    return place


@given(st.from_regex(r"[a-z]+/[0-9]+", fullmatch=True), st.dictionaries(st.text(), JSON))
def test_a_script_provides_the_value_that_it_was_made_of(key: str, value: dict[str, Any]) -> None:
    text = provided(key, script(key, value))
    assert json.loads(text) == value
    assert not set(b"<>&") & set(text)


def test_pieces_are_those_of_the_folder(folder: Path) -> None:
    pages = Pages.of(folder)
    keys = [name[len("data/") : -len(".js")] for name in pages.files if name.startswith("data/")]
    assert len(keys) > 10
    for key in keys:
        assert script(key, json.loads(pages.piece(key))) == (folder / f"data/{key}.js").read_bytes()


@pytest.mark.parametrize("key", ["", "nothing", "../index", "index.js", "/etc/passwd", "\x00"])
def test_nothing_else_is_read(folder: Path, key: str) -> None:
    with pytest.raises(ArtifactError, match="has no data"):
        Pages.of(folder).piece(key)


def test_a_name_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    outside, inside = tmp_path / "secret.js", tmp_path / "atlas"
    outside.write_text("secret")
    inside.mkdir()
    listed = {"data/../../secret.js": "", "data/a.js": ""}
    (inside / "atlas.json").write_text(json.dumps({"about": {}, "files": listed}))
    with pytest.raises(ArtifactError, match="has no data"):
        Pages.of(inside).piece("../../secret")
    (inside / "data").mkdir()
    (inside / "data" / "a.js").symlink_to(outside)
    with pytest.raises(ArtifactError, match="link"):
        Pages.of(inside).piece("a")


def test_a_piece_that_was_changed_is_refused(small: Small, tmp_path: Path) -> None:
    salve.atlas(small.hooked, small.dictionary, small.acts, tmp_path, bench_images=20)
    pages = Pages.of(tmp_path)
    (tmp_path / "data" / "index.js").write_bytes(script("index", {"title": "other"}))
    with pytest.raises(ArtifactError, match="written again or changed"):
        pages.piece("index")


def test_a_folder_without_an_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="holds no atlas"):
        salve.atlas_widget(tmp_path)
    with pytest.raises(InputError, match="no path"):
        salve.atlas_widget("\x00")


def test_the_notebook_may_go_to_another_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    shown = salve.atlas_widget(folder.name)
    monkeypatch.chdir(tmp_path)
    sent: list[Any] = []
    monkeypatch.setattr(shown, "send", lambda *message: sent.append(message))
    shown._handle_custom_msg({"load": "index"}, [])
    assert sent[0][0] == {"key": "index"}


def test_the_widget_holds_the_pages_and_no_data(folder: Path) -> None:
    shown = salve.atlas_widget(folder)
    state = shown.get_state()
    assert "_css" not in state  # a notebook would apply it to itself
    assert len(state["_esm"]) < 200_000
    assert not any(str(folder) in str(value) for value in state.values())
    assert repr(shown) == f"<AtlasWidget of {folder}: no edit yet on its bench>"


def test_the_recipe_follows_the_bench(folder: Path) -> None:
    shown = salve.atlas_widget(folder)
    heard = []
    shown.observe(lambda change: heard.append(change["new"]), "recipe")
    for said, data in (
        ({"edited": True}, [memoryview(b"one")]), ({"edited": True}, [memoryview(b"two")]),
        ({"edited": False}, []), ({}, []),
    ):  # fmt: skip
        shown._handle_custom_msg(said, data)
    assert heard == [b"one", b"two", None]
    with pytest.raises(InputError, match="as its edit bench shows an edit"):
        salve.Edit.from_recipe(shown.recipe)


def test_without_the_package_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "salve_plugin.report.widget", raising=False)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingExtraError, match=r"salve-plugin\[notebook\]") as caught:
        salve.atlas_widget(folder)
    assert isinstance(caught.value, ImportError)
