"""An artifact as a page: what its edit changed, from the evidence that it carries."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from salve_plugin.control.assessment.assessment import Assessment
from salve_plugin.control.assessment.outcomes import Effect
from salve_plugin.report.folder import page_files, save
from salve_plugin.report.scripts import array, data_url, script
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.files import usable
from salve_plugin.store.producer import producer
from salve_plugin.validate.plots import ALPHA_CRIT

MOST_CLASSES = 1000
"""Classes that the page lists: those whose accuracy changed most."""


def artifact_page(
    artifact: EditArtifact, folder: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Write a folder with one page about an artifact; neither model nor data is needed.

    Args:
        artifact: with whatever evidence it carries.
        folder: made if missing.
        force: replace what lies there, whatever it is.

    Returns:
        The path of `index.html`.

    Raises:
        InputError: if something else lies in the folder.
        WriteError: if it cannot be written; what was there is whole.
    """
    edit = artifact.edit
    strength = None if edit.operator.form == "low_rank_update" else edit.strength
    content: dict[str, Any] = {
        "title": edit.kind,
        "about": {"producer": producer(), "digest": artifact.digest},
        "artifact": {
            "amount": edit.amount,
            "rows": None if edit.rows is None else [_name(artifact, row) for row in edit.rows],
            "site": edit.site.name,
            "strength": strength,
            "base": {str(name): str(value) for name, value in edit.base.description.items()},
            "assessment": None
            if artifact.assessment is None
            else _assessment(artifact, artifact.assessment),
            "crit": _crit(artifact),
            "pictures": [
                {"name": name, "source": data_url(picture)}
                for name, picture in sorted((artifact.pictures or {}).items())
                if name != ALPHA_CRIT  # the page draws it itself
            ],
        },
    }
    files = {"data/index.js": script("index", content), **page_files()}
    return save(usable(folder), files, {"artifact": artifact.digest}, force=force) / "index.html"


def _name(artifact: EditArtifact, label: int) -> str:
    return str(label) if artifact.labels is None else artifact.labels[label]


def _assessment(artifact: EditArtifact, assessment: Assessment) -> Mapping[str, Any]:
    seen = [each for each in assessment.classes if each.accuracy is not None]
    # The label last, so that equal changes come in the same order and give the same bytes.
    seen.sort(
        key=lambda each: (
            each.label != assessment.target,
            -abs(each.accuracy[1] - each.accuracy[0]) if each.accuracy else 0.0,
            each.label,
        )
    )
    return {
        "verdict": assessment.verdict,
        "target": None if assessment.target is None else _name(artifact, assessment.target),
        "images": assessment.images,
        "changed": assessment.budget.changed,
        "norm": assessment.budget.norm,
        "effects": [
            {"name": "before", "accuracy": assessment.accuracy, "target": assessment.target_before,
             "others": None, "worst": None, "kl": None},
            _effect("the edit", assessment.effect),
            *(_effect(control.name, control.effect) for control in assessment.controls),
        ],
        "classes": [
            {
                "name": _name(artifact, each.label),
                "count": each.count,
                "accuracy": each.accuracy,
                "probability": each.probability,
                "destination": None
                if each.destination is None
                else _name(artifact, each.destination),
                "share": each.destination_share,
            }
            for each in seen[:MOST_CLASSES]
        ],
    }  # fmt: skip


def _effect(name: str, effect: Effect) -> Mapping[str, Any]:
    return {
        "name": name, "accuracy": effect.accuracy, "target": effect.target,
        "others": effect.others, "worst": effect.worst, "kl": effect.kl_others,
    }  # fmt: skip


def _crit(artifact: EditArtifact) -> list[Mapping[str, Any]]:
    crit = artifact.alpha_crit
    if crit is None:
        return []
    # The class that the edit is about comes first; sorting is stable, so that the others stay.
    target = None if artifact.assessment is None else artifact.assessment.target
    labels = sorted(torch.unique(crit.labels).tolist(), key=lambda label: label != target)
    return [
        {
            "name": _name(artifact, label),
            "target": crit.target,
            "values": array(crit.values[crit.labels == label].sort().values, "f64"),
        }
        for label in labels
    ]
