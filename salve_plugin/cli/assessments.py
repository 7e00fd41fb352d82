"""How an assessment is shown on a terminal."""

from salve_plugin.cli.output import console, show_table
from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.tables import (
    CLASS_COLUMNS,
    budget_line,
    class_rows,
    control_columns,
    control_rows,
)
from salve_plugin.control.choosing.candidate import Choice


def show_verdict(choice: Choice) -> None:
    """Print in one line what was chosen, in red and with the word NOT MET if it is not enough."""
    style = "green" if choice.met else "bold red"
    console().print(choice.verdict, highlight=False, markup=False, soft_wrap=True, style=style)


def show_assessment(assessment: Assessment, title: str) -> None:
    """Print classes, controls, budget and, in one line, the verdict."""
    rows = class_rows(assessment)
    show_table(title, CLASS_COLUMNS, rows)
    out = console()
    if len(rows) < len(assessment.classes):
        left_out = len(assessment.classes) - len(rows)
        out.print(f"And {left_out} classes more (--json has them).", highlight=False)
    columns = control_columns(assessment)
    show_table("beside controls", columns, control_rows(assessment))
    for line in (budget_line(assessment), assessment.verdict):
        out.print(line, highlight=False, markup=False, soft_wrap=True)
