"""Recipes as files: the very edit comes back, and whatever is damaged is refused."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import recipe
from small_network import random_edits, small

import salve_plugin as salve
from salve_plugin.errors import ArtifactError, InputError, MissingFileError, SalveError

EDITS = random_edits(small(), random.Random(0), 30)


def test_every_edit_comes_back(tmp_path: Path) -> None:
    assert {edit.operator.form for edit in EDITS} == {"gate", "low_rank_map", "low_rank_update"}
    for edit in EDITS:
        path = tmp_path / "edit.safetensors"
        path.write_bytes(recipe(edit))
        for source in (path, str(path), path.read_bytes()):
            again = salve.Edit.from_recipe(source)
            assert again == edit
            assert again.to_json() == edit.to_json()


@given(st.sampled_from(EDITS), st.data())
def test_a_damaged_recipe_is_another_edit_or_refused(edit: salve.Edit, data: st.DataObject) -> None:
    whole = recipe(edit)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(SalveError):
        salve.Edit.from_recipe(whole[:cut])
    changed = bytearray(whole)
    changed[cut] ^= data.draw(st.integers(1, 255))
    try:
        again = salve.Edit.from_recipe(bytes(changed))
    except SalveError:
        return
    # No digest guards a recipe: with other numbers or notes it is another edit.
    assert isinstance(again, salve.Edit)


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    plain = recipe(EDITS[0], format="pt")
    with pytest.raises(ArtifactError, match=r"metadata \['format'\], a recipe has 'recipe'"):
        salve.Edit.from_recipe(plain)
    with pytest.raises(ArtifactError, match="is not valid"):
        salve.Edit.from_recipe(recipe(EDITS[0], recipe="{"))
    with pytest.raises(InputError):
        salve.Edit.from_recipe(recipe(EDITS[0], recipe="{}"))
    # Half of a character: JSON can say it, no file can hold it.
    half = recipe(EDITS[0], recipe="??????").replace(b"??????", b"\\ud800")
    with pytest.raises(ArtifactError):
        salve.Edit.from_recipe(half)
    with pytest.raises(ArtifactError, match="pickle"):
        salve.Edit.from_recipe(b"PK\x03\x04 and so on")
    with pytest.raises(MissingFileError):
        salve.Edit.from_recipe(tmp_path / "nothing.safetensors")
    with pytest.raises(ArtifactError, match="not a plain file"):
        salve.Edit.from_recipe(tmp_path)
    with pytest.raises(InputError, match="the recipe is None"):
        salve.Edit.from_recipe(None)


@pytest.mark.parametrize("other", [3, EDITS[0], bytearray(recipe(EDITS[0]))])
@pytest.mark.usefixtures("untyped")
def test_what_is_neither_a_path_nor_bytes_is_refused(other: Any) -> None:
    with pytest.raises(InputError, match=f"is a {type(other).__name__}; a path was expected"):
        salve.Edit.from_recipe(other)
