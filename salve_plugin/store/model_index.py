"""Evaluation results in a card's metadata, as the Hub lists them: people's with ours among them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

Index = list[dict[str, Any]]


def merged_index(existing: object, ours: Index | None, previous: Index | None) -> object:
    """Return people's results with ours among them; None if there are none at all.

    A result of ours that is there already gets its new value where it stands; those of the
    `previous` manifest that do not hold any more are removed. What cannot be read as a
    `model-index` is people's and left as it is.
    """
    if not existing:
        return ours
    if not _is_readable(existing):
        return existing
    assert isinstance(existing, list)
    there, new, old = _rows(existing), _rows(ours or []), _rows(previous or [])
    wanted = {_key(row): row for row in new}
    # Only what this library wrote before may go: of another measure nobody knows that it is wrong.
    outdated = {_key(row) for row in old} - set(wanted)
    rows = [_updated(row, wanted) for row in there if _key(row) not in outdated]
    known = {_key(row) for row in rows}
    # Under the name that people gave the model, if they gave one.
    model = _without(existing[-1], "results")
    rows += [_Row(model, row.about, row.metric) for row in new if _key(row) not in known]
    return existing if rows == there else _index(rows) or None


class _Row(NamedTuple):
    """One metric: the model's fields, what its result is about, and the metric's own fields."""

    model: Mapping[str, Any]
    about: Mapping[str, Any]
    metric: Mapping[str, Any]


def _rows(index: Sequence[Mapping[str, Any]]) -> list[_Row]:
    return [
        _Row(_without(model, "results"), _without(result, "metrics"), metric)
        for model in index
        for result in model["results"]
        for metric in result["metrics"]
    ]


def _index(rows: Sequence[_Row]) -> Index:
    """Return the `model-index` of rows; neighbours that say the same are joined again."""
    return [
        {
            **model,
            "results": [
                {**about, "metrics": [dict(row.metric) for row in same]}
                for about, same in groupby(of_model, key=lambda row: row.about)
            ],
        }
        for model, of_model in groupby(rows, key=lambda row: row.model)
    ]


def _key(row: _Row) -> str:
    """Return what is measured on what, without the value."""
    task, dataset = row.about["task"], row.about["dataset"]
    fields = ("type", "name", "config", "split", "revision")
    measured = [row.metric["type"], row.metric.get("name")]
    # As text, since what people wrote in a card need not be hashable.
    return repr([task["type"], *(dataset.get(field) for field in fields), *measured])


def _updated(row: _Row, wanted: Mapping[str, _Row]) -> _Row:
    new = wanted.get(_key(row))
    # A value that still holds stays as it stands: people may have said more about it.
    if new is None or new.metric["value"] == row.metric["value"]:
        return row
    return _Row(row.model, row.about, new.metric)


def _is_readable(index: object) -> bool:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        model_index_to_eval_results(index)  # type: ignore[arg-type] # it is what is being asked
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return isinstance(index, list)


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}
