"""What several edits left known, side by side."""

from collections.abc import Sequence

from salve_plugin.control.assessment.forgetting import Forgetting
from salve_plugin.control.assessment.site_features import LOGITS
from salve_plugin.faces.table import aligned, percent


def forgetting_table(results: Sequence[Forgetting]) -> str:
    """Return several edits' results side by side as plain text."""
    lines = [f"{at}: {each.edit}" for at, each in enumerate(results)]
    names = list(dict.fromkeys(row.site for each in results for row in each.recovery))
    # The logits are the last of every edit, and stay so where another's sites come earlier.
    names = [*(name for name in names if name != LOGITS), LOGITS]
    rows: list[list[str]] = [["", *(str(at) for at in range(len(results)))]]
    rows += [[f"probe at {name}", *(_probe_cell(each, name) for each in results)] for name in names]
    rows.append(["nearest neighbour", *(_neighbour_cell(each) for each in results)])
    for step in sorted({step for each in results for step in each.steps}):
        cells = (_step_cell(each, step) for each in results)
        rows.append([f"right after {step} steps (fresh row)", *cells])
    verdicts = [f"{at}: {each.verdict}" for at, each in enumerate(results)]
    return "\n".join([*lines, aligned(rows), *verdicts])


def _probe_cell(result: Forgetting, name: str) -> str:
    row = next((each for each in result.recovery if each.site == name), None)
    if row is None:
        return "—"
    after = row.after
    told = "" if row.of_classes is None else f", classes alone {percent(row.of_classes)}"
    return (
        f"{percent(row.before.accuracy)} → {percent(after.accuracy)} "
        f"[{100 * after.low:.0f}, {100 * after.high:.0f}], chance {percent(row.chance)}{told}"
    )


def _neighbour_cell(result: Forgetting) -> str:
    if result.neighbours is None:
        return "—"
    before, after = result.neighbours
    return f"{percent(before)} → {percent(after)}, chance {percent(result.neighbours_chance)}"


def _step_cell(result: Forgetting, step: int) -> str:
    if step not in result.steps or not result.relearned:
        return "—"
    at = result.steps.index(step)
    return f"{percent(result.relearned[at])} ({percent(result.fresh[at])})"
