"""The card's section on what an edit costs."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.tables import (
    CLASS_COLUMNS,
    budget_line,
    class_rows,
    control_columns,
    control_rows,
    prediction_lines,
)
from salve_plugin.store.card import plain, table

MAX_CLASSES = 20


def assessment_section(fields: Mapping[str, Any] | None) -> str:
    """Return verdict, classes, controls, budget and predictions; empty without an assessment.

    Args:
        fields: the assessment in a manifest that passed its checks.
    """
    if fields is None:
        return ""
    # From the file, not from the value that was saved: a card says what its manifest says, to the
    # byte.
    assessment = Assessment.from_json(fields)
    rows = class_rows(assessment, MAX_CLASSES)
    left_out = len(assessment.classes) - len(rows)
    parts = [
        "## What the edit costs",
        plain(assessment.verdict),
        table(CLASS_COLUMNS, [tuple(map(plain, row)) for row in rows]),
        f"And {left_out} classes more, in `edit_config.json`." if left_out else "",
        table(
            control_columns(assessment),
            [tuple(map(plain, row)) for row in control_rows(assessment)],
        ),
        plain(budget_line(assessment)),
        plain(" ".join(prediction_lines(assessment))),
        f"Measured on {assessment.images} images. To measure it again on the same ones and compare:"
        f"\n\n```bash\n{assessment.evidence.command}\n```",
    ]
    return "\n\n".join(part for part in parts if part)
