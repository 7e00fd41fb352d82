"""The measures of dictionaries as a table and as a figure."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from salve_plugin.faces.table import Table
from salve_plugin.validate.reconstruction import histogram_edges
from salve_plugin.validate.stability import SAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from salve_plugin.faces.drawing import Drawing
    from salve_plugin.validate.measures import Measures
    from salve_plugin.validate.quality import Quality

TWINS = 0.99
"""|cosine| of two atoms from which on they are one direction."""

MOST = 0.5
"""Share of dense latents from which on a dictionary's codes are dense, and not some latents."""

TITLES = {
    "n_latents": "latents",
    "r2": "R²",
    "fvu": "FVU",
    "l0": "L0",
    "dead_share": "dead share",
    "dense_share": "dense share",
    "coherence": "coherence",
    "nearest_cosine": "nearest atom's |cosine|",
    "cross_entropy": "cross-entropy, spliced",
    "accuracy": "accuracy, spliced",
    "kl": "KL, spliced",
    "ce_recovered": "cross-entropy recovered",
    "accuracy_recovered": "accuracy recovered",
    "stability": "stability across seeds",
    "stable_share": f"share above {SAME}",
    "stability_null": "stability of random atoms",
    "signed_cosine": "cosine",
    "monosemanticity": "monosemanticity",
    "monosemantic_latents": "latents that have one",
    "separability": "class separability",
    "constant_latents": "latents left out",
    "error_r2": "R² of error, linear",
    "error_norm_r2": "R² of its norm",
    "fvu_nonlinear": "FVU, nonlinear part",
    "amortization_gap": "amortization gap",
}
"""How a measure is called in table and figure."""

DRAWN = (
    "r2", "l0", "ce_recovered", "accuracy_recovered", "stability", "monosemanticity",
    "separability", "dead_share", "dense_share", "fvu_nonlinear", "amortization_gap",
)  # fmt: skip
"""Measures that the figure shows, where the dictionary has them."""


def table(quality: "Quality") -> Table:
    """Return measures in rows, dictionaries in columns, and what one must know to read them."""
    rows = [
        (title, *(_printed(getattr(row, field)) for row in quality.rows.values()))
        for field, title in TITLES.items()
    ]
    # All of them: they are as many in every report.
    return Table("", ("", *quality.rows), rows, tuple(notes(quality)), most=len(rows))


def notes(quality: "Quality") -> list[str]:
    """Return what one must know to read the numbers, one sentence in a line."""
    some = "" if quality.n_images == quality.n_held_out else f" of {quality.n_held_out}"
    lines = [
        f"'{quality.learner}' dictionary of '{quality.site}', measured on {quality.n_rows} rows of "
        f"{quality.n_images}{some} images held out from training.",
        f"Active: |z| above {quality.l0_tolerance} of the data's root mean squared distance from "
        f"their mean. TopK controls keep {quality.k} latents of a row; seed {quality.seed}.",
    ]
    if quality.clean and quality.mean_ablation and quality.zero_ablation:
        behaviours = {
            "untouched": quality.clean, "site at its mean": quality.mean_ablation,
            "site at zero": quality.zero_ablation,
        }  # fmt: skip
        lines += [
            f"Model {name}: cross-entropy {behaviour.cross_entropy:.4f}, accuracy "
            f"{behaviour.accuracy:.4f}, KL {behaviour.kl:.4f}."
            for name, behaviour in behaviours.items()
        ]
    if quality.dictionary.stability is not None:
        starts = ", ".join(
            initialization or "unknown" for initialization in quality.initializations
        )
        lines.append(
            f"Stability: atoms matched one to one; the dictionaries' atoms started from: {starts}."
        )
    if quality.mean_cosine is not None:
        lines.append(
            f"A latent that does not care about the image has monosemanticity "
            f"{quality.mean_cosine:.4f}."
        )
    return lines + cautions(quality.rows)


def cautions(rows: Mapping[str, "Measures"]) -> list[str]:
    """Return what the dictionary's numbers mean where they are not those of a sparse dictionary.

    Args:
        rows: measures by name, the dictionary's own first.
    """
    own, *_ = rows.values()
    lines = []
    if own.coherence >= TWINS:
        lines.append(
            f"Coherence {own.coherence:.3f}: some atoms are twins, one direction in two latents. "
            "They share what one would code, so that neither is a feature of its own, and an edit "
            "of one leaves the other's share. Fewer latents have fewer twins."
        )
    if own.dense_share >= MOST:
        lines.append(
            f"{own.dense_share:.0%} of the latents are active in more than a tenth of the rows: "
            "whether one is active says little, only its size does. A code without activation "
            "function ('l1', 'pca') is so by construction; others can be asked for a smaller L0."
        )
    random = rows["random"].separability if "random" in rows else None
    if own.separability is not None and random is not None and own.separability < random:
        lines.append(
            "Single latents tell classes apart less well than latents of random atoms with as many "
            "active: read classes from several latents, or choose a sparser learner."
        )
    return lines


def figure(quality: "Quality") -> "Drawing":
    """Draw the density histogram and bars beside those of the controls; see `Quality.figure`."""
    from salve_plugin.faces.drawing import Drawing

    drawn = [name for name in DRAWN if getattr(quality.dictionary, name) is not None]
    columns = 4
    rows = -(-(len(drawn) + 2) // columns)  # the histogram takes two places
    result = Drawing(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
    grid = result.add_gridspec(rows, columns)
    _draw_densities(result.add_subplot(grid[0, :2]), quality)
    for slot, name in enumerate(drawn, start=2):
        _draw_bars(result.add_subplot(grid[slot // columns, slot % columns]), quality, name)
    return result


def _draw_densities(axes: "Axes", quality: "Quality") -> None:
    """Draw which share of the latents has which density, dead ones left out."""
    edges = histogram_edges().tolist()
    for number, (name, counts) in enumerate(quality.histograms.items()):
        shares = [count / quality.rows[name].n_latents for count in counts]
        style: dict[str, Any] = {"fill": True, "alpha": 0.35} if number == 0 else {"linewidth": 1.2}
        axes.stairs(shares, edges, label=name, color=f"C{number}", **style)
    places = zip(edges[:-1], *quality.histograms.values(), strict=True)
    filled = [edge for edge, *counts in places if any(counts)]
    axes.set_xlim(min(filled, default=-1) - 0.1, 0.1)
    axes.set_xlabel("log10 of the share of rows in which a latent is active", fontsize="small")
    axes.set_ylabel("share of latents", fontsize="small")
    axes.tick_params(labelsize="x-small")
    axes.legend(fontsize="x-small")


def _draw_bars(axes: "Axes", quality: "Quality", field: str) -> None:
    """Draw one measure of every dictionary that has it, the chance level as a line."""
    names = list(quality.rows)
    values = [getattr(quality.rows[name], field) for name in names]
    for row, value in enumerate(values):
        if value is None:
            axes.text(0, row, " -", va="center", fontsize="x-small")
        else:
            axes.barh(row, value, color=f"C{row}")
    chance = {
        "stability": quality.dictionary.stability_null, "monosemanticity": quality.mean_cosine,
    }.get(field)  # fmt: skip
    if chance is not None:
        axes.axvline(chance, color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.tick_params(axis="x", labelsize="x-small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(TITLES[field], fontsize="small")


def _printed(value: int | float | bool | None) -> str:
    """Return a number as the table shows it."""
    kinds: dict[type, Callable[[Any], str]] = {
        type(None): lambda _: "-",
        bool: lambda signed: "signed" if signed else "absolute",
        int: str,
        float: lambda number: f"{number:z.3f}",
    }
    return kinds[type(value)](value)
