"""Image folders: classes are matched with the model's, and bad files are named."""

from pathlib import Path

import numpy as np
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


def wide(mode: str) -> Image.Image:
    ramp = np.linspace(1000, 5000, 64 * 64).reshape(64, 64)
    if mode == "F":
        return Image.fromarray((ramp / 10_000).astype(np.float32))
    return Image.fromarray(ramp.astype(np.int32 if mode == "I" else np.uint16))


@pytest.mark.parametrize(("mode", "ending"), [("I;16", "png"), ("I;16", "tif"), ("F", "tiff")])
def test_wide_and_floating_point_pictures_keep_their_contrast(
    tmp_path: Path, mode: str, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    wide(mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
    values = np.asarray(open_image(path))
    assert values.shape == (64, 64, 3)
    assert (values.min(), values.max()) == (0, 255)
    assert len(np.unique(values)) == 256
    expected = np.round(np.linspace(0, 255, 64 * 64))
    assert np.abs(values[..., 1].ravel() - expected).max() <= 1


def test_a_picture_of_one_value_is_black_and_one_with_nan_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 7, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png")).max() == 0
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ReadError, match=r"a\.tif .*NaN"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:10, :10] = 255  # a mark in one corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    upright = np.asarray(open_image(tmp_path / "a.jpg"))[..., 0] > 128
    rows, columns = ([0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 1, 0, 0, 1, 1, 0])  # bottom, right
    assert upright.shape == ((40, 60) if orientation < 5 else (60, 40))
    assert upright[-5 if rows[orientation - 1] else 4, -5 if columns[orientation - 1] else 4]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_plain_tiffs_stand_upright_too(tmp_path: Path, orientation: int, dtype: type) -> None:
    # Pillow maps them into memory by their path, and then reads those on their side wrongly.
    pixels = np.zeros((40, 60))
    pixels[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, kind in (("a.tif", dtype), ("a.png", np.uint8)):
        Image.fromarray(pixels.astype(kind)).save(tmp_path / name, exif=exif)
    tiff, png = (np.asarray(open_image(tmp_path / name)) for name in ("a.tif", "a.png"))
    assert np.array_equal(tiff, png)


def test_what_the_system_puts_into_folders_and_links_that_lead_back_are_passed_over(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "photos"
    picture = Image.new("RGB", (8, 8))
    names = ("a/1.png", "a/deeper/2.png", "b/1.png", ".ipynb_checkpoints/1.png", ".empty/x",
             "a/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/a/1.png", "a/._1.png")  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, format="png")
    for link in (folder / "all", folder / "a" / "loop", folder / "b" / "here"):
        link.symlink_to(link.parent if link.name == "here" else folder)
    (folder / "c").symlink_to(folder / "a" / "deeper")  # leads elsewhere
    tree = ImageTree(folder, _size, names=None, n=3)
    found = [(path.relative_to(folder).as_posix(), label) for path, label in tree.samples]
    assert found == [("a/1.png", 0), ("a/deeper/2.png", 0), ("b/1.png", 1), ("c/2.png", 2)]


@pytest.mark.parametrize("ending", ["gif", "GIF", "png", "JPEG", "jfif", "tif", "webp", "bmp"])
def test_every_kind_of_picture_that_can_be_opened_is_found_in_a_folder(
    tmp_path: Path, ending: str
) -> None:
    (tmp_path / "3").mkdir()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(tmp_path / "3" / f"a.{ending}")
    (tmp_path / "3" / "notes.txt").write_text("no picture")
    tree = ImageTree(tmp_path, _size, names=None, n=10)
    assert [path.name for path, _ in tree.samples] == [f"a.{ending}"]
    assert tree[0][0].tolist() == [8, 8]


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
