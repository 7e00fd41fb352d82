"""The demo's results as tables."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from salve_plugin.control.change import Change
from salve_plugin.demo.shortcut import LABEL, OFTEN

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from salve_plugin.demo.measures import ClassResult
    from salve_plugin.demo.photographs import SubjectOutcome
    from salve_plugin.demo.run import NetworkResult

TARGET, LOSS = 0.05, 0.01
"""What an edit should reach: target accuracy at most, and others' mean loss at most."""


def print_network(result: "NetworkResult", console: "Console") -> None:
    """Print everything that was measured on one network."""
    console.print(_suppression(result))
    console.print(_seeds(result))
    console.print(_strengths(result))
    console.print(_enhancement(result))
    console.print(_shortcut(result))
    console.print(f"Chosen: {result.shortcut.verdict}.", highlight=False)
    crossing = result.crossing
    effect = ", ".join(
        f"{label}: {before:.0%} → {after:.0%}"
        for label, (before, after) in enumerate(zip(crossing.before, crossing.after, strict=True))
        if abs(before - after) > 0.02
    )
    console.print(
        f"Cross-class latent {crossing.latent}, shared by classes {crossing.classes[0]} and "
        f"{crossing.classes[1]}: suppressed on all rows with α = {crossing.strength:.1f} it "
        f"changes {effect or 'no class by more than 2 points'}.\n",
        highlight=False,
    )


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _met(effect: Change) -> bool:
    return effect.target_after <= TARGET and effect.others_mean >= -LOSS


def _cell(effect: Change | None) -> str:
    if effect is None:
        return "never flips"
    colour = "green" if _met(effect) else "red"
    return f"[{colour}]{effect.target_after:6.1%} {100 * effect.others_mean:+6.1f}[/]"


def _suppression(result: "NetworkResult") -> "Table":
    quality = result.dictionary
    table = _table(
        f"{result.name}: suppress each class (test accuracy {result.accuracy:.2%}; dictionary of "
        f"{quality['n_latents']} latents, held-out R² {quality['held_out_r2']:.3f})\n"
        "target accuracy after | mean change of the other classes, points",
        "class", "before", "latent", "α", "all rows (paper)", "rows", "latent", "α",
        "named rows", "mask (bias)", "zero the row", "random direction",
    )  # fmt: skip
    for row in result.classes:
        table.add_row(
            str(row.label),
            f"{row.recipe_change.target_before:.1%}",
            str(row.recipe.edit.latent),
            f"{row.recipe.edit.gate.strength:.1f}",
            _cell(row.recipe_change),
            ",".join(str(index) for index in row.named.edit.rows or ()),
            str(row.named.edit.latent),
            f"{row.named.edit.gate.strength:.1f}",
            _cell(row.named_change),
            _cell(row.mask),
            _cell(row.zero_row),
            _cell(row.random),
        )
    return table


def _means(results: Sequence["ClassResult"]) -> list[list[Change | None]]:
    return [
        [row.recipe_change for row in results],
        [row.named_change for row in results],
        [row.mask for row in results],
        [row.zero_row for row in results],
        [row.random for row in results],
    ]


def _seeds(result: "NetworkResult") -> "Table":
    table = _table(
        f"{result.name}: {len(result.seeds)} dictionary seeds x {len(result.classes)} classes",
        "edit", "classes met", "target accuracy: mean", "worst", "others: mean", "worst",
        "worst class",
    )  # fmt: skip
    names = ("all rows (paper)", "named rows", "mask (bias)", "zero the row", "random direction")
    every = [_means(results) for results in result.seeds]
    for kind, name in enumerate(names):
        effects = [effect for seed in every for effect in seed[kind]]
        known = [effect for effect in effects if effect is not None]
        if not known:
            table.add_row(name, f"0 of {len(effects)}", *["-"] * 5)
            continue
        table.add_row(
            name,
            f"{sum(_met(effect) for effect in known)} of {len(effects)}",
            f"{fmean(effect.target_after for effect in known):.2%}",
            f"{max(effect.target_after for effect in known):.2%}",
            f"{100 * fmean(effect.others_mean for effect in known):+.2f}",
            f"{100 * min(effect.others_mean for effect in known):+.2f}",
            f"{100 * min(effect.others_worst for effect in known):+.2f}",
        )
    return table


def _strengths(result: "NetworkResult") -> "Table":
    table = _table(
        f"{result.name}: critical strength of each test image's logit (zero, all rows), exact "
        "against linear against brute force",
        "class", "images", "finite", "agree with brute force", "|logit at root| / logit",
        "linear / exact", "logit left at linear",
    )  # fmt: skip

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    for check in result.crit:
        table.add_row(
            str(check.label),
            str(check.images),
            str(check.finite),
            f"{check.agree} of {check.images}",
            f"{check.worst_residual:.0e}" if check.finite else "-",
            shown(check.linear_ratio),
            shown(check.left_at_linear),
        )
    return table


def _enhancement(result: "NetworkResult") -> "Table":
    table = _table(
        f"{result.name}: enhance each class's dominant latent on all rows "
        f"(α = {result.enhanced[0].strength:g})",
        "class", "latent", "confidence on its images", "other images labelled so",
        "target accuracy", "others",
    )  # fmt: skip
    for row in result.enhanced:
        table.add_row(
            str(row.label),
            str(row.latent),
            f"{row.confidence[0]:.3f} → {row.confidence[1]:.3f}",
            f"{row.drawn[0]:.1%} → {row.drawn[1]:.1%}",
            f"{row.change.target_before:.1%} → {row.change.target_after:.1%}",
            f"{100 * row.change.others_mean:+.1f}",
        )
    return table


def print_summary(results: Sequence["NetworkResult"], console: "Console") -> None:
    """Print one line a network: what was asked, what was reached, and what travels."""
    table = _table(
        f"Summary (met: target accuracy ≤ {TARGET:.0%}, others' mean loss ≤ {100 * LOSS:.0f} "
        "point, on test images)",
        "network", "accuracy", "all rows (paper)", "named rows", "mask (bias)", "zero the row",
        "random direction", "α_crit checked", "artifacts", "kB each",
    )  # fmt: skip
    for result in results:
        kinds = _means(result.classes)
        met = [
            f"{sum(effect is not None and _met(effect) for effect in effects)} of {len(effects)}"
            for effects in kinds
        ]
        images = sum(check.images for check in result.crit)
        agree = sum(check.agree for check in result.crit)
        table.add_row(
            result.name,
            f"{result.accuracy:.2%}",
            *met,
            f"{agree} of {images}",
            f"{len(result.artifacts)} reverted bit for bit",
            f"{median(size for _, size in result.artifacts) / 1000:.0f}",
        )
    console.print(table)
    for result in results:
        console.print(_verdict(result), highlight=False)


def _verdict(result: "NetworkResult") -> str:
    """Return in one line what suppresses a class and what removes a shortcut, by the numbers."""
    names = ("the paper's edit", "named rows", "the mask")
    met = [
        sum(effect is not None and _met(effect) for effect in effects)
        for effects in _means(result.classes)[:3]
    ]
    best = max(met)
    # Of those that do as well the simplest is named: the list goes from features to none.
    winner = [name for name, count in zip(names, met, strict=True) if count == best][-1]
    counts = ", ".join(f"{name} {count}" for name, count in zip(names, met, strict=True))
    before, gate, chosen = result.shortcut.effects[:3]
    return (
        f"{result.name}: to suppress a class take {winner} (of {len(result.classes)} classes met: "
        f"{counts}). Planted shortcut: the mark flips {before.flips:.0%} of the pictures; "
        f"{gate.flips:.0%} with the paper's gate, {chosen.flips:.0%} with the chosen edit; worst "
        f"group {before.worst:.0%}, {gate.worst:.0%}, {chosen.worst:.0%}."
    )


def _shortcut(result: "NetworkResult") -> "Table":
    table = _table(
        f"{result.name}: a white square that is in {OFTEN:.0%} of class {LABEL}'s training "
        f"pictures (held-out AUC {result.shortcut.auc:.3f})\ntest pictures, each with and without "
        "it",
        "edit", "flips with the mark", "worst group", "accuracy without it",
        f"class {LABEL} without it",
    )  # fmt: skip
    for effect in result.shortcut.effects:
        shares = (effect.flips, effect.worst, effect.plain, effect.own)
        table.add_row(effect.method, *(f"{share:.1%}" for share in shares))
    return table


def print_outcomes(outcomes: Sequence["SubjectOutcome"], console: "Console") -> None:
    """Print what the network sees in each photograph before and after its classes' edits."""
    table = _table(
        "what the network sees, before and after suppressing the photograph's classes",
        "photograph", "before", "all rows (paper)", "named rows",
    )  # fmt: skip
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            *(
                "\n".join(f"{name} {value:.1%}" for name, value in top)
                for top in (outcome.before, outcome.recipe, outcome.named)
            ),
        )
    console.print(table)
    effects = _table(
        "held-out images: share of the class's that keep their label | mean change of the other "
        "classes, points",
        "photograph", "class", "all rows (paper)", "rows edited", "named rows", "zero the row",
        "random direction",
    )  # fmt: skip
    for outcome in outcomes:
        for name, row in zip(outcome.classes, outcome.results, strict=False):
            effects.add_row(
                outcome.name,
                name,
                _cell(row.recipe_change),
                str(len(row.named.edit.rows or ())),
                _cell(row.named_change),
                _cell(row.zero_row),
                _cell(row.random),
            )
    console.print(effects)
