"""The figure of critical strengths: how they are distributed, class by class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from salve_plugin.control.critical import AlphaCrit
    from salve_plugin.control.edit import Edit
    from salve_plugin.faces.drawing import Drawing

NAMED_CLASSES = 6
"""More are too many to tell apart; the rest are drawn together."""
WIDTH, HEIGHT, DPI = 8.0, 5.0, 160
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by colour-blind readers too (Okabe and Ito)."""
STYLES = ("-", (0, (6, 2)), (0, (2, 1)), "-.", (0, (9, 2, 2, 2, 2, 2)), (0, (1, 2)))
"""Told apart in grey."""
_REST_COLOUR = "#767676"
_BAND_COLOUR = "#f0f0f0"
_NAME_LENGTH = 24
_BAND = 0.09
"""Width of a band at either end of the axis, as a share of the axis between them."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One line of the plot: the critical strengths of a class, or of all that have no own line.

    Attributes:
        name: for the legend.
        values: ascending, (images,).
        colour: of the line.
    """

    name: str
    values: Float64[Tensor, " images"]
    colour: str

    @property
    def already(self) -> float:
        """Share of images at the target without any edit."""
        return float((self.values == 0).double().mean())

    @property
    def never(self) -> float:
        """Share of images that no strength brings there."""
        return float(self.values.isinf().double().mean())

    def steps(self) -> tuple[list[float], list[float]]:
        """Return the positive finite strengths and the share of images reached at each."""
        values, counts = torch.unique_consecutive(self.values, return_counts=True)
        shares = counts.cumsum(0).double() / len(self.values)
        inside = (values > 0) & values.isfinite()
        return values[inside].tolist(), shares[inside].tolist()


def alpha_crit_figure(critical: "AlphaCrit", edit: "Edit | None") -> "Drawing":
    """Draw the distribution of the critical strengths.

    For each class the share of images that have reached the target at a strength, exactly, as
    steps. Images that are there without any edit, and those that no strength brings there, stand
    at the two ends of the axis. With more than `NAMED_CLASSES` classes, those whose rows are edited
    and then those that the edit's strength moves most have a line of their own.

    Args:
        critical: the critical strengths, of at least one image.
        edit: whose strength is marked, if any is.

    Raises:
        InputError: if there is no image.
    """
    if not len(critical.values):
        raise InputError(
            "critical strengths of no image cannot be drawn; compute them for images of some "
            "class, or leave the plot out (plot=False)"
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from salve_plugin.faces.drawing import Drawing

    figure = Drawing((WIDTH, HEIGHT), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure, curves(critical, edit), critical, edit)
    return figure


def curves(critical: "AlphaCrit", edit: "Edit | None") -> list[Curve]:
    """Return the lines to draw; the classes' own by label, then the one of all the rest."""
    values = critical.values.detach().cpu()
    labels = critical.labels.detach().cpu()
    present = torch.unique(labels).tolist()
    chosen = present
    if len(present) > NAMED_CLASSES:
        chosen = sorted(_most_concerned(values, labels, edit)[: NAMED_CLASSES - 1])
    named = [
        Curve(_name(critical.classes, label), values[labels == label].sort().values, colour)
        for label, colour in zip(chosen, COLOURS, strict=False)
    ]
    rest = values[~torch.isin(labels, torch.tensor(chosen))].sort().values
    others = f"the other {len(present) - len(chosen)} classes"
    return [*named, Curve(others, rest, _REST_COLOUR)] if len(rest) else named


def _most_concerned(values: Tensor, labels: Tensor, edit: "Edit | None") -> list[int]:
    """Return all labels; those of edited rows first, then by the share that the edit moves."""
    # By their place among the labels that are there, which may be few and far apart.
    classes, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    strength = torch.finfo(torch.float64).max if edit is None else edit.strength
    moved = ((values > 0) & (values <= strength)).double()
    shares = torch.zeros(len(classes), dtype=torch.float64).index_add_(0, index, moved) / counts
    rows = set(() if edit is None else edit.rows or ())
    ranked = sorted(
        zip(classes.tolist(), shares.tolist(), strict=True),
        key=lambda label_and_share: (
            label_and_share[0] not in rows,
            -label_and_share[1],
            label_and_share[0],
        ),
    )
    return [label for label, _ in ranked]


def _name(classes: Sequence[str] | None, label: int) -> str:
    """Return a class's name in one short line; its index where it has none that can be drawn."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    name = " ".join(classes[label].split()) if classes and label < len(classes) else ""
    font = get_font(findfont(FontProperties()))
    if not name or not all(font.get_char_index(ord(letter)) for letter in name):
        return f"class {label}"
    name = f"class {name}" if name.isdigit() else name
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


def _draw(
    figure: "Figure", lines: Sequence[Curve], critical: "AlphaCrit", edit: "Edit | None"
) -> None:
    axes = figure.add_subplot()
    span = _span(lines, 0.0 if edit is None else edit.strength)
    axes.set_xscale("log")
    axes.set_xlim(span.left, span.right)
    axes.set_ylim(-0.02, 1.02)
    for start, end in ((span.left, span.low), (span.high, span.right)):
        axes.axvspan(start, end, color=_BAND_COLOUR, linewidth=0)
    for line, style in zip(lines, cycle(STYLES), strict=False):
        _draw_curve(axes, line, style, span)
    _draw_strength(axes, edit, span)
    _label(axes, critical, edit, span)
    legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


class _StrengthSpan:
    """The horizontal axis: from `low` to `high`, with a band on either side for 0 and infinity."""

    def __init__(self, low: float, high: float) -> None:
        # A factor, since the axis is logarithmic: 0 and infinity have no place on it and get a band
        # each.
        band = math.pow(high / low, _BAND)
        self.low, self.high = low, high
        self.left, self.right = low / band, high * band
        self.zero, self.infinity = low / math.sqrt(band), high * math.sqrt(band)


def _span(lines: Sequence[Curve], strength: float) -> _StrengthSpan:
    """Return the range of all positive finite strengths, with room at both ends."""
    shown = [value for line in lines for value in line.steps()[0]]
    shown = [min(max(value, 1e-12), 1e12) for value in [*shown, strength] if value > 0]
    low, high = min(shown, default=1.0), max(shown, default=1.0)
    room = max((high / low) ** 0.04, 1.05)
    return _StrengthSpan(low / room, high * room)


def _draw_curve(axes: "Axes", line: Curve, style: Any, span: _StrengthSpan) -> None:
    strengths, shares = line.steps()
    reached = shares[-1] if shares else line.already
    x = [span.left, *strengths, span.right]
    y = [line.already, *shares, reached]
    axes.step(
        x, y, where="post", color=line.colour, linestyle=style, linewidth=1.8,
        label=_legend(line),
    )  # fmt: skip
    if line.already:
        axes.plot([span.zero], [line.already], "o", color=line.colour, markersize=5)
    if line.never:
        axes.plot([span.infinity], [reached], "x", color=line.colour, markersize=6)


def _legend(line: Curve) -> str:
    parts = [f"{len(line.values)} image{'s' if len(line.values) != 1 else ''}"]
    parts += [f"{line.already:.0%} without any edit"] if line.already else []
    parts += [f"{line.never:.0%} never"] if line.never else []
    # A hair space in front: matplotlib leaves labels that begin with an underscore out of the
    # legend.
    return f"\u200a{line.name} ({', '.join(parts)})"


def _mode(edit: "Edit") -> str | None:
    """Return the mode of a gate; a map has none."""
    return getattr(edit.operator, "mode", None)


def _draw_strength(axes: "Axes", edit: "Edit | None", span: _StrengthSpan) -> None:
    if edit is None or edit.strength <= 0:
        return
    axes.axvline(edit.strength, color="#222222", linestyle="--", linewidth=1)
    # On the side of the line that has room, halfway along the logarithmic axis.
    late = edit.strength > (span.low * span.high) ** 0.5
    axes.annotate(
        f"this edit, {'1−λ' if _mode(edit) is None else 'α'} = {edit.strength:.4g}",
        (edit.strength, 0.02), xytext=(-4 if late else 4, 0), textcoords="offset points",
        ha="right" if late else "left", va="bottom", fontsize=9, color="#222222",
    )  # fmt: skip


def _label(axes: "Axes", critical: "AlphaCrit", edit: "Edit | None", span: _StrengthSpan) -> None:
    from matplotlib.ticker import NullLocator, PercentFormatter

    if edit is None:
        axes.set_xlabel("strength of the edit")
    elif (mode := _mode(edit)) is not None:
        sign = {"suppress": "-", "enhance": "+"}[mode]
        reach = "|c_j|" if len(edit.gate.directions) == 1 else r"\mathrm{reach}_j"
        axes.set_xlabel(
            rf"strength $\alpha$ (weights scaled by $\max(0, 1 {sign} \alpha\,{reach})$)"
        )
    else:
        axes.set_xlabel(r"amount $1-\lambda$ (1: all of the reading is replaced by its offset)")
    ticks = {span.zero: "0\nno edit needed", span.infinity: "∞\nnever"}
    ticks |= {value: f"{value:g}" for value in _round_values(span)}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(_reached(critical))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def _round_values(span: _StrengthSpan) -> list[float]:
    """Return about three to nine round values of the axis, evenly spaced if it is short."""
    from matplotlib.ticker import MaxNLocator

    first, last = math.floor(math.log10(span.low)), math.ceil(math.log10(span.high))
    decades = [10.0**power for power in range(first, last + 1)]
    finer = [factor * decade for decade in decades for factor in (1, 2, 5)]
    even = list(map(float, MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(span.low, span.high)))
    fitting = [
        [value for value in values if span.low <= value <= span.high]
        for values in (decades[:: 1 + len(decades) // 9], finer, even)
    ]
    return next((values for values in fitting if len(values) > 3), fitting[-1])


def _reached(critical: "AlphaCrit") -> str:
    logit = {"label": "logit", "predicted": "predicted class's logit"}[critical.against]
    goal = {
        "zero": "is 0 or less",
        "fraction": f"is at most {critical.fraction:g} of its value",
        "flip": "is overtaken by another",
    }[critical.target]
    return f"images whose {logit}\n{goal}"
