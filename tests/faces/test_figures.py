"""Figures show the numbers of their values, with named axes, and are written whole."""

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import salve_plugin as salve
from salve_plugin.errors import InputError

DRAWN = ("features", "choice", "crit", "evaluation", "maximization", "quality")


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_written_and_readable_in_grey(
    name: str, study: SimpleNamespace, tmp_path: Path
) -> None:
    getattr(study, name).figure(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) >= 320
        grey = np.asarray(picture.convert("L"), dtype=float)
    assert grey.std() > 10  # black on white, whatever the colours were


def test_a_figure_is_shown_in_notebooks_and_refuses_formats_that_nobody_knows(
    study: SimpleNamespace, tmp_path: Path
) -> None:
    figure = study.maximization.figure()
    with Image.open(BytesIO(figure._repr_png_())) as picture:
        assert picture.format == "PNG"
    with pytest.raises(InputError, match="cannot draw"):
        study.maximization.figure(tmp_path / "figure.nothing")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "quality"])
def test_axes_say_what_they_measure(name: str, study: SimpleNamespace) -> None:
    figure: Figure = getattr(study, name).figure()
    measuring = [axes for axes in figure.axes if axes.axison]
    assert measuring
    for axes in measuring:
        assert axes.get_ylabel() or axes.get_xlabel()


def test_the_heat_map_of_a_profile_has_its_means(study: SimpleNamespace) -> None:
    axes = study.features.figure().axes[0]
    latents = [int(text.get_text()) for text in axes.get_xticklabels()]
    expected = study.features.means[:, latents]
    np.testing.assert_allclose(axes.images[0].get_array(), expected.numpy())
    assert {study.features.dominant(label) for label in range(10)} <= set(latents)
    assert axes.get_yticklabels()[1].get_text() == "one & only"


def test_the_confusion_matrix_has_the_counts(study: SimpleNamespace) -> None:
    axes = study.evaluation.figure(classes=study.acts.classes).axes[0]
    numbers = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    confusion = study.evaluation.confusion
    assert numbers == {
        (row, column): int(confusion[row, column])
        for row in range(10) for column in range(10) if confusion[row, column]
    }  # fmt: skip
    with pytest.raises(InputError, match="2 names for 10 classes"):
        study.evaluation.figure(classes=["a", "b"])


def test_a_choice_is_drawn_with_all_that_was_tried(study: SimpleNamespace) -> None:
    axes = study.choice.figure().axes[0]
    points = np.concatenate([marks.get_offsets() for marks in axes.collections[:2]])
    tried = [(one.effect, one.harm) for one in study.choice.tried]
    assert sorted(map(tuple, points.tolist())) == sorted(tried)


def test_many_classes_and_dollar_signs_are_drawn(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(100, 200, generator=generator, dtype=torch.float64)
    counts = torch.ones(100, dtype=torch.int64)
    names = tuple(f"$x_{at}$ of a long name" for at in range(100))
    features = salve.Features(means, means.std(0), counts, names, means)
    features.figure(tmp_path / "features.png")
    evaluation = salve.Evaluation(torch.randint(0, 9, (100, 100), generator=generator))
    evaluation.figure(tmp_path / "evaluation.png")
    assert len(list(tmp_path.iterdir())) == 2
