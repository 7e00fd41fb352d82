"""The figure of a choice: what every candidate reaches, and what it costs."""

from typing import TYPE_CHECKING

from salve_plugin.faces.drawing import Drawing

if TYPE_CHECKING:
    from salve_plugin.control.choosing.candidate import Choice


def choice_figure(choice: "Choice") -> Drawing:
    """Draw effect against harm of all that was tried; see `Choice.figure`."""
    from matplotlib.ticker import PercentFormatter

    figure = Drawing((6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    bound = choice.goal.max_harm
    kinds = (("features and concepts", False, "o", "black"), ("controls", True, "s", "none"))
    for name, is_control, marker, filling in kinds:
        if candidates := [one for one in choice.tried if one.is_control == is_control]:
            axes.scatter(
                [one.effect for one in candidates], [one.harm for one in candidates],
                s=28, marker=marker, facecolors=filling, edgecolors="black", linewidths=1,
                label=f"{name} ({len(candidates)})",
            )  # fmt: skip
    front = choice.front
    axes.step(
        [one.effect for one in front], [one.harm for one in front], where="post",
        color="black", linewidth=1, linestyle=":", label="front: no other one beats these",
    )  # fmt: skip
    chosen = choice.chosen
    axes.scatter(
        [chosen.effect], [chosen.harm], s=190, marker="*", facecolors="white",
        edgecolors="black", linewidths=1.4, zorder=3,
        label=f"chosen: {chosen.method}"[:60].replace("$", r"\$"),
    )  # fmt: skip
    axes.axvline(choice.enough, color="#555555", linestyle="--", linewidth=1)
    axes.axhline(bound, color="#555555", linestyle="--", linewidth=1)
    # Read before anything is drawn to the limits: shading would widen them.
    axes.margins(0.08)
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    right, low = max(right, choice.enough + 0.05 * (right - left)), min(low, 0.0)
    axes.fill_between([choice.enough, right], low, bound, color="#e6e6e6", zorder=0, linewidth=0)
    axes.set(xlim=(left, right), ylim=(low, max(high, bound)))
    axes.annotate(
        "goal", (choice.enough, bound), xytext=(5, -5), textcoords="offset points", va="top",
        fontsize=9, color="#333333",
    )  # fmt: skip
    axes.set_title(f"{type(choice.goal).__name__}: {'met' if choice.met else 'NOT MET'}")
    axes.set_xlabel(f"effect, in the goal's unit (at least {choice.enough:.3g} is wanted)")
    axes.set_ylabel(f"harm: largest loss of accuracy\n(at most {bound:.1%} is allowed)")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
