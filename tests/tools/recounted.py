"""The numbers of an assessment counted again with NumPy, image by image, in float64."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def softmax(logits: Array) -> Array:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    result: Array = shifted / shifted.sum(1, keepdims=True)
    return result


def kl(p: Array, q: Array) -> Array:
    """Return KL(p || q) of each row; 0 log 0 = 0."""
    terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(q)), 0.0)
    result: Array = terms.sum(1)
    return result


def effect(labels: Array, before: Array, after: Array, target: int | None) -> dict[str, Any]:
    """Return what `Effect.to_json` says without a concept."""
    classes = sorted(set(labels.tolist()))
    right = {
        label: [float((z[labels == label].argmax(1) == label).mean()) for z in (before, after)]
        for label in classes
    }
    others = {label: b - a for label, (a, b) in right.items() if label != target}
    p, q = softmax(before), softmax(after)
    elsewhere = labels != target if target is not None else np.ones(len(labels), bool)
    worst = min(others.values(), default=None)
    result: dict[str, Any] = {
        "accuracy": float((after.argmax(1) == labels).mean()),
        "concept": None,
        "ideal": None,
        "kl_others": float(kl(p, q)[elsewhere].mean()) if elsewhere.any() else None,
        "others": sum(others.values()) / len(others) if others else None,
        "target": None if target is None else right[target][1],
        "worst": worst,
        "worst_label": min((k for k, v in others.items() if v == worst), default=None),
    }
    if target is not None:
        ideal = p.copy()
        ideal[:, target] = 0
        ideal /= ideal.sum(1, keepdims=True)
        far, agree = kl(ideal, q), ideal.argmax(1) == after.argmax(1)
        mine = labels == target
        result["ideal"] = {
            "kl_others": float(far[~mine].mean()) if (~mine).any() else None,
            "kl_target": float(far[mine].mean()),
            "others_agree": float(agree[~mine].mean()) if (~mine).any() else None,
            "runner_up": float(agree[mine].mean()),
        }
    return result


def outcome(
    label: int, labels: Array, before: Array, after: Array, rows: tuple[Array, Array]
) -> dict[str, Any]:
    """Return what `ClassOutcome.to_json` says of a class, but its name and bias."""
    mine = labels == label
    count = int(mine.sum())
    counts = np.bincount(after[mine].argmax(1), minlength=before.shape[1])
    counts[label] = 0
    old, new = rows[0][label], rows[1][label]
    pairs = [(z[mine].argmax(1) == label) for z in (before, after)]
    own = [softmax(z)[mine, label] for z in (before, after)]
    return {
        "accuracy": [float(each.mean()) for each in pairs] if count else None,
        "count": count,
        "destination": int(counts.argmax()) if counts.max() else None,
        "destination_share": float(counts.max() / count) if count else 0.0,
        "label": label,
        "probability": [float(each.mean()) for each in own] if count else None,
        "spread": [float(z[:, label].std()) for z in (before, after)],
        "weights_changed": int((old != new).sum()),
        "weights_zeroed": int(((old != 0) & (new == 0)).sum()),
    }
