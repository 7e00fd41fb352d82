"""Image folders: classes are matched with the model's, and bad files are named."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from salve_plugin.cli.images import ImageTree, open_image
from salve_plugin.discover.recording.labels import match_classes
from salve_plugin.errors import InputError, ReadError

IMAGENET = [
    ("n01", "tench, Tinca tinca", "tench"),
    ("n02", "crane", "crane"),
    ("n03", "crane", "crane"),
]


def _size(image: Image.Image) -> Tensor:
    return torch.tensor(image.size)


def test_names_ids_and_descriptions_find_their_class() -> None:
    assert match_classes(["Tench", "n03"], IMAGENET, 3) == [0, 2]
    assert match_classes(["tench, tinca tinca"], IMAGENET, 3) == [0]


def test_as_many_folders_as_classes_are_taken_in_alphabetical_order() -> None:
    assert match_classes(["a", "b", "c"], None, 3) == [0, 1, 2]
    assert match_classes(["0", "1", "10"], None, 3) == [0, 1, 2]


def test_numbers_are_class_indices() -> None:
    assert match_classes(["7", "2"], None, 10) == [7, 2]


def test_folders_that_match_nothing_are_named() -> None:
    with pytest.raises(InputError, match=r"\['church'\] match no class of the model, which has 10"):
        match_classes(["7", "church"], None, 10)


def test_an_image_that_cannot_be_read_is_named(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    broken = tmp_path / "3" / "broken.png"
    broken.write_bytes(next(image_folder.glob("3/*.png")).read_bytes()[:60])
    tree = ImageTree(tmp_path, _size, names=None, n=10)
    with pytest.raises(ReadError, match=r"broken\.png cannot be read as an image"):
        tree[0]
    (tmp_path / "3" / "text.png").write_text("no image")
    with pytest.raises(ReadError, match=r"text\.png"):
        open_image(tmp_path / "3" / "text.png")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="is not an image folder"):
        ImageTree(tmp_path, _size, names=None, n=10)
    with pytest.raises(ReadError, match="is not an image folder"):
        ImageTree(tmp_path / "nowhere", _size, names=None, n=10)


def test_labels_and_class_names_are_the_models(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "7").symlink_to(image_folder / "7")
    tree = ImageTree(tmp_path, _size, names=None, n=10)
    assert {label for _, label in tree.samples} == {7}
    assert tree.classes[7] == "7"
    assert len(tree.classes) == 10


def test_a_name_that_several_classes_have_is_refused_with_their_indices() -> None:
    with pytest.raises(InputError, match=r"'crane': \[1, 2\].*WordNet id"):
        match_classes(["tench", "crane"], IMAGENET, 3)


def test_every_imagenet_class_gets_a_name_of_its_own(tmp_path: Path, image_folder: Path) -> None:
    import timm

    from salve_plugin.adapter import installed_adapters

    names = installed_adapters()["timm"].class_names(timm.create_model("test_resnet"))
    (tmp_path / "tabby").symlink_to(image_folder / "7")
    (tmp_path / "n03126707").symlink_to(image_folder / "3")  # the crane that lifts loads
    tree = ImageTree(tmp_path, _size, names=names, n=1000)
    assert len(set(tree.classes)) == 1000
    assert {tree.classes[label] for _, label in tree.samples} == {"tabby", "n03126707"}
    assert tree.classes[967] == "espresso"
    assert names is not None
    assert {names[label][0] for _, label in tree.samples} == {"n02123045", "n03126707"}
