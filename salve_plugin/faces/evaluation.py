"""The figure of an evaluation: its confusion matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from salve_plugin.errors import InputError
from salve_plugin.faces.drawing import Drawing, label

if TYPE_CHECKING:
    from salve_plugin.control.evaluate import Evaluation

NUMBERED, NAMED = 12, 40
"""Up to so many classes, cells have numbers, and classes names."""


def evaluation_figure(evaluation: "Evaluation", classes: Sequence[str] | None = None) -> Drawing:
    """Draw the confusion matrix; see `Evaluation.figure`."""
    from matplotlib.ticker import PercentFormatter

    n_classes = len(evaluation.confusion)
    if classes is not None and len(classes) != n_classes:
        raise InputError(f"{len(classes)} names for {n_classes} classes; give one for each")
    side = min(9.0, 2.2 + 0.42 * n_classes)
    figure = Drawing((side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    shares = evaluation.confusion / evaluation.count[:, None]
    # White is none, black is all: classes without images, which have no share, stay hatched.
    image = axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=1)
    axes.patch.set(hatch="//", edgecolor="#bbbbbb")
    if n_classes <= NUMBERED:
        for (row, column), share in ((at, float(shares[at])) for at in _cells(n_classes)):
            if share > 0:
                axes.text(
                    column, row, str(int(evaluation.confusion[row, column])), ha="center",
                    va="center", fontsize="small", color="white" if share > 0.5 else "black",
                )  # fmt: skip
    if n_classes <= NAMED:
        names = [label(name) for name in classes or map(str, range(n_classes))]
        axes.set_xticks(range(n_classes), names, fontsize="small", rotation=90)
        axes.set_yticks(range(n_classes), names, fontsize="small")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    images = int(evaluation.confusion.sum())
    axes.set_title(f"{evaluation.overall:.1%} of {images} images right", fontsize="medium")
    figure.colorbar(
        image, ax=axes, shrink=0.8, label="share of the true class's images",
        format=PercentFormatter(1),
    )  # fmt: skip
    return figure


def _cells(n_classes: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(n_classes) for column in range(n_classes)]
