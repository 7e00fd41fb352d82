"""Places that cannot be written to: one kind of error for everything that can be saved."""

from collections.abc import Callable
from pathlib import Path

import pytest
from edited_models import artifact_of
from small_artifacts import small_artifact, small_bundle, small_model
from small_dictionaries import tiny as small_dictionary
from torch import nn

import salve_plugin as salve
from salve_plugin.errors import WriteError
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.card import MAX_CARD_BYTES

Save = Callable[[Path], object]


@pytest.fixture(params=["edit", "bundle", "dictionary", "model"])
def save(request: pytest.FixtureRequest, small: nn.Module) -> Save:
    """What saves each of the things into a folder."""
    artifact = artifact_of(small)
    saving: dict[str, Save] = {
        "edit": small_artifact().save_pretrained,
        "bundle": small_bundle().save_pretrained,
        "dictionary": small_dictionary().save_pretrained,
        "model": lambda folder: salve.save_edited_model(small, artifact, folder),
    }
    return saving[request.param]


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("inside", ["", "sub", "sub/sub"])
def test_a_folder_that_is_a_file_is_not_written_to(save: Save, inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="cannot write"):
        save(tmp_path / "file" / inside)
    assert (tmp_path / "file").read_text() == "mine"
    assert everything(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link", "folder", "long"])
def test_a_card_whose_text_cannot_be_kept_is_not_replaced(
    save: Save, kind: str, tmp_path: Path
) -> None:
    folder, mine = tmp_path / "folder", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("mine")
    card = folder / "README.md"
    if kind == "link":
        card.symlink_to(mine)
    elif kind == "folder":
        card.mkdir()
    else:
        card.write_bytes(b"x" * (MAX_CARD_BYTES + 1))
    before = everything(tmp_path)
    with pytest.raises(WriteError, match=r"README\.md that is there .* nothing was written"):
        save(folder)
    assert everything(tmp_path) == before
    assert mine.read_text() == "mine"


def test_a_member_with_such_a_card_is_not_dropped_either(tmp_path: Path) -> None:
    bundle = small_bundle()
    folder = bundle.save_pretrained(tmp_path)
    (folder / "rows" / "README.md").unlink()
    (folder / "rows" / "README.md").mkdir()
    before = everything(tmp_path)
    smaller = EditBundle.of(small_model(), {"all": bundle.members["all"]})
    with pytest.raises(WriteError, match=r"README\.md that is there"):
        smaller.save_pretrained(folder)
    assert everything(tmp_path) == before
