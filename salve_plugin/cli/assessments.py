"""How an assessment is shown on a terminal."""

from collections.abc import Sequence

from salve_plugin.cli.output import say, show_table
from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.tables import (
    CLASS_COLUMNS,
    budget_line,
    class_rows,
    control_columns,
    control_rows,
    prediction_lines,
)
from salve_plugin.control.choosing.candidate import Choice


def show_verdict(choice: Choice) -> None:
    """Print in one line what was chosen, in red and with the word NOT MET if it is not enough."""
    style = "green" if choice.met else "bold red"
    say(choice.verdict, style=style)


def show_assessment(assessment: Assessment, title: str, names: Sequence[str] | None) -> None:
    """Print classes, controls, budget, what was predicted, and in one line the verdict.

    Args:
        assessment: to print.
        title: of the table.
        names: of all the model's classes, if they are known.
    """
    rows = class_rows(assessment, names=names)
    show_table(title, CLASS_COLUMNS, rows)
    if len(rows) < len(assessment.classes):
        left_out = len(assessment.classes) - len(rows)
        say(f"And {left_out} classes more (--json has them).")
    columns = control_columns(assessment)
    show_table("beside controls", columns, control_rows(assessment))
    say(budget_line(assessment), *prediction_lines(assessment), assessment.verdict)


def show_predictions(assessment: Assessment) -> None:
    """Print in a line or two how far a dictionary's codes predict the edit, if that is known."""
    say(*prediction_lines(assessment))
