"""The pictures of a card: what they show, and that the same input gives the same bytes."""

import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image
from small_artifacts import (
    altered,
    grey_png,
    random_dictionary,
    small_artifact,
    small_crit,
    small_edit,
)
from torch import Tensor, nn

from salve_plugin import Dictionary, HookedModel, attach, suppress
from salve_plugin.control.critical import AlphaCrit
from salve_plugin.control.edit import Edit
from salve_plugin.errors import InputError
from salve_plugin.faces.alpha_crit import COLOURS, NAMED_CLASSES, curves
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.pictures import MAX_PICTURES
from salve_plugin.validate.heat_maps import grad_fam_pictures
from salve_plugin.validate.plots import alpha_crit_picture

INF = float("inf")


@pytest.fixture
def tiny_edit() -> Edit:
    """An edit of rows 1 and 2 of a 3x4 head."""
    return small_edit()


@pytest.fixture
def tiny() -> EditArtifact:
    """An artifact with every optional part but the dictionary."""
    return small_artifact()


@pytest.fixture
def tiny_crit() -> AlphaCrit:
    """Critical strengths of four images."""
    return small_crit()


@pytest.fixture
def png() -> bytes:
    """A picture of one grey pixel."""
    return grey_png()


def crit(values: list[float], labels: list[int], names: tuple[str, ...] | None = None) -> AlphaCrit:
    numbers, marks = torch.tensor(values, dtype=torch.float64), torch.tensor(labels)
    return AlphaCrit(numbers, numbers, marks, marks, "zero", 0.5, "label", "0" * 64, names)


def pixels(png: bytes) -> Tensor:
    """Return (height, width, 3)."""
    with Image.open(BytesIO(png)) as picture:
        data = bytearray(picture.convert("RGB").tobytes())
        return torch.frombuffer(data, dtype=torch.uint8).reshape(picture.height, picture.width, 3)


def painted(png: bytes, colour: str) -> Tensor:
    """Return the (row, column) of every pixel of about this colour."""
    wanted = torch.tensor(list(bytes.fromhex(colour.removeprefix("#"))))
    return ((pixels(png).int() - wanted).abs().amax(2) < 12).nonzero()


def test_each_class_has_its_exact_distribution(tiny_edit: Edit) -> None:
    one, two = curves(
        crit([3.0, INF, 0.0, 2.0, 3.0, 0.0, 7.0], [1, 1, 1, 1, 1, 4, 4], ("a", "first", "c")),
        tiny_edit,
    )
    assert (one.name, one.already, one.never) == ("first", 0.2, 0.2)
    assert one.steps() == ([2.0, 3.0], [0.4, 0.8])
    assert (two.name, two.already, two.never) == ("class 4", 0.5, 0.0)
    assert two.steps() == ([7.0], [1.0])


def test_many_classes_show_those_of_the_edit_and_the_rest_together(tiny_edit: Edit) -> None:
    labels = [label for label in range(20) for _ in range(5)]
    # Of class 7 all are moved by the edit, of 11 three, of 3 two, of 5 and the others none.
    values = [9.0] * 100
    values[35:40], values[55:58], values[15:17] = [1.0] * 5, [1.0] * 3, [1.0] * 2
    values[25:30] = [0.0] * 5
    lines = curves(crit(values, labels), altered(tiny_edit, rows=(1, 2), strength=1.0))
    names = [line.name for line in lines]
    assert names == ["class 1", "class 2", "class 3", "class 7", "class 11", "the other 15 classes"]
    assert len(names) == NAMED_CLASSES
    assert sum(len(line.values) for line in lines) == 100
    assert len({line.colour for line in lines}) == NAMED_CLASSES
    few = curves(crit(values[:30], labels[:30]), tiny_edit)
    assert [line.name for line in few] == [f"class {label}" for label in range(6)]


def level(png: bytes) -> float:
    """Return the row in which most of the first line is."""
    rows = painted(png, COLOURS[0])[:, 0]
    return float(rows[rows < 680].mode().values)  # the legend is below


def test_a_line_is_where_the_shares_say(tiny_edit: Edit) -> None:
    half = alpha_crit_picture(crit([0.0, INF], [0, 0]), altered(tiny_edit, strength=0.0))
    all_there = alpha_crit_picture(crit([0.0, 0.0], [0, 0]), altered(tiny_edit, strength=0.0))
    none = alpha_crit_picture(crit([INF, INF], [0, 0]), altered(tiny_edit, strength=0.0))
    assert 2 * level(half) == pytest.approx(level(all_there) + level(none), abs=4)


def test_the_edits_strength_moves_its_line(tiny_edit: Edit) -> None:
    columns = []
    for strength in (2.0, 4.0, 8.0):
        png = alpha_crit_picture(crit([1.0, 16.0], [0, 0]), altered(tiny_edit, strength=strength))
        dark = (pixels(png)[40:500].int().amax(2) < 70).sum(0)
        dark[:200], dark[-20:] = 0, 0  # without the axes
        columns.append(int(dark.argmax()))
        assert int(dark.max()) > 200
    first, second = columns[1] - columns[0], columns[2] - columns[1]
    assert first > 100
    assert second == pytest.approx(first, abs=2)  # a logarithmic axis


@pytest.mark.parametrize(
    "critical",
    [
        crit([1e-300, 1e300], [0, 0]),
        crit([5e-324, INF], [0, 1]),
        crit([2.0], [0], ("$x^{$ _",)),
        crit([2.0, 3.0, 1.0], [0, 1, 2], ("_hidden", "日本\n語", "x" * 500)),
        replace(crit([2.0, 2.0000001], [3, 3]), target="fraction", against="predicted"),
        replace(crit([1.0, INF], [0, 0]), target="flip"),
    ],
    ids=["far", "tiny", "mathematics", "names", "narrow", "flip"],
)
def test_odd_input_is_drawn(critical: AlphaCrit, tiny_edit: Edit) -> None:
    png = alpha_crit_picture(critical, tiny_edit)
    assert len(painted(png, COLOURS[0])) > 100
    assert len(png) < 100_000


def test_no_image_is_no_picture(tiny_edit: Edit) -> None:
    empty = torch.zeros(0, dtype=torch.int64)
    nothing = AlphaCrit(
        empty.double(), empty.double(), empty, empty, "zero", 0.5, "label", "0" * 64
    )
    with pytest.raises(InputError, match="no image"):
        alpha_crit_picture(nothing, tiny_edit)


def test_it_is_readable_at_800_pixels_and_small(tiny_edit: Edit) -> None:
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(50_000, generator=draw).exp().double()
    labels = torch.randint(0, 1000, (50_000,), generator=draw)
    png = alpha_crit_picture(
        AlphaCrit(values, values, labels, labels, "flip", 0.5, "label", "0" * 64), tiny_edit
    )
    assert pixels(png).shape == (800, 1280, 3)
    assert (pixels(png)[[0, 0, -1, -1], [0, -1, 0, -1]] > 250).all()
    assert len(png) < 60_000


def test_names_that_the_font_lacks_are_replaced_by_the_index(tiny_edit: Edit) -> None:
    names = ("日本", "  two\n words ", "", "y" * 40)
    lines = curves(crit([1.0] * 5, [0, 1, 2, 3, 9], names), tiny_edit)
    assert [line.name for line in lines] == [
        "class 0",
        "two words",
        "class 2",
        "y" * 23 + "…",
        "class 9",
    ]


def test_the_same_input_gives_the_same_bytes_whatever_the_user_configured(
    tiny_edit: Edit, tiny_crit: AlphaCrit
) -> None:
    first = alpha_crit_picture(tiny_crit, tiny_edit)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        assert alpha_crit_picture(tiny_crit, tiny_edit) == first
        assert matplotlib.rcParams["font.size"] == 30
    with Image.open(BytesIO(first)) as picture:
        picture.load()
        assert set(picture.info) <= {"transparency"}


def test_reading_needs_no_plotting_and_plotting_no_global_state(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    script = f"""
import sys
from salve_plugin.share.artifact import EditArtifact
artifact = EditArtifact.from_pretrained({str(tmp_path)!r})
EditArtifact.verify({str(tmp_path)!r})
assert not {{"matplotlib", "PIL", "captum"}} & set(sys.modules)
from salve_plugin.validate.plots import alpha_crit_picture
sys.stdout.buffer.write(alpha_crit_picture(artifact.alpha_crit, artifact.edit))
assert "matplotlib.pyplot" not in sys.modules
"""
    drawn = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    loaded = EditArtifact.from_pretrained(tmp_path)
    assert loaded.alpha_crit is not None
    assert drawn == alpha_crit_picture(loaded.alpha_crit, tiny.edit)


def edit_of(network: nn.Module) -> tuple[HookedModel, Dictionary, Edit]:
    hooked = attach(network)
    dictionary = random_dictionary(hooked)
    return hooked, dictionary, suppress(hooked, dictionary, latent=1, strength=2.0)


def test_of_adds_the_plot_and_the_constructor_does_not(
    digits_resnet: nn.Module, png: bytes
) -> None:
    hooked, _, edit = edit_of(digits_resnet)
    found = replace(crit([1.0, INF, 0.0], [0, 0, 1]), family=edit.family)
    drawn = EditArtifact.of(hooked, edit, alpha_crit=found, pictures={"mine": png})
    assert drawn.pictures == {"mine": png, "alpha-crit": alpha_crit_picture(found, edit)}
    assert EditArtifact(edit, alpha_crit=found).pictures is None
    assert EditArtifact.of(hooked, edit).pictures is None
    assert EditArtifact.of(hooked, edit, alpha_crit=found, plot=False).pictures is None
    own = EditArtifact.of(hooked, edit, alpha_crit=found, pictures={"alpha-crit": png})
    assert own.pictures == {"alpha-crit": png}
    named = EditArtifact.of(hooked, edit, alpha_crit=found, labels=["one", "two"])
    with_names = replace(found, classes=("one", "two"))
    assert named.pictures == {"alpha-crit": alpha_crit_picture(with_names, edit)}
    many = {f"p{number}": png for number in range(MAX_PICTURES)}
    assert EditArtifact.of(hooked, edit, alpha_crit=found, pictures=many).pictures == many


def test_the_card_says_what_is_seen(digits_resnet: nn.Module, tmp_path: Path) -> None:
    hooked, dictionary, edit = edit_of(digits_resnet)
    images = torch.rand(2, 1, 32, 32)
    EditArtifact.of(
        hooked,
        edit,
        alpha_crit=replace(crit([1.0, INF, 0.0], [0, 0, 1]), family=edit.family),
        pictures=grad_fam_pictures(hooked, dictionary, edit, images),
    ).save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    shown = re.findall(r"^!\[(.+)\]\((picture_[a-z0-9-]+\.png)\)\n\n\*(.+)\*$", text, re.MULTILINE)
    assert [file for _, file, _ in shown] == [
        "picture_alpha-crit.png",
        "picture_grad-fam-1.png",
        "picture_grad-fam-2.png",
    ]
    assert all(alternative == caption for alternative, _, caption in shown)
    assert all((tmp_path / file).is_file() for _, file, _ in shown)
    assert "whose logit falls to zero" in shown[0][2]
    assert "α = 2" in shown[0][2]
    assert "latent 1 comes from" in shown[1][2]
