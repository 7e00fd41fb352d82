"""The shipped schema and the small validator that enforces it."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.errors import ArtifactError
from salve_plugin.share.schema import check_schema, config_schema

SHA = "0" * 64


def valid_config() -> dict[str, Any]:
    """A small manifest with every optional part, right in form (its digests are invented)."""
    return {
        "alpha_crit": {
            "against": "label",
            "classes": [
                {"already": 0.0, "count": 3, "label": 1, "unreachable": 0.25,
                 "quantiles": {"0.1": 1, "0.25": 1.5, "0.5": 2.0, "0.75": 2.0, "0.9": None,
                               "0.95": None}}
            ],
            "fraction": None,
            "target": "zero",
        },
        "base": {
            "description": {"architecture": "resnet18", "num_classes": 2},
            "tensors": {"fc.weight": {"dtype": "float32", "sha256": SHA, "shape": [2, 4]}},
        },
        "data": {"name": "digits", "images": 3},
        "dictionary": {
            "at": {"commit": SHA[:40], "repo_id": "me/dictionary", "subfolder": "a/b"},
            "digest": SHA, "fields": None, "learner": "l1",
        },
        "digest": SHA,
        "edit": {
            "atom_norm": "unit", "latent": 3, "mode": "suppress", "operator": "scale",
            "rows": [1],
            "site": {
                "grid": None, "layout": "pooled", "module": "fc", "name": "unembed.hook_in",
                "prefix_tokens": 0, "readers": ["fc"], "side": "in", "width": 4, "writers": [],
            },
            "strength": 2.0,
        },
        "evaluation": {"after": {"accuracy": 0.5}, "before": {"accuracy": 1}},
        "files": {"edit.safetensors": {"sha256": SHA, "size": 10}},
        "format_version": "1.0",
        "labels": ["no", "yes"],
        "manifest_sha256": SHA,
        "merged": {
            "config.json": {"sha256": SHA, "size": 1},
            "model.safetensors": {"sha256": SHA, "size": 2},
        },
        "producer": {"name": "salve_plugin", "version": "0.1.0"},
        "requires": ["alpha_crit", "scale"],
        "tensors": {"direction": {"dtype": "F32", "shape": [4]}},
    }  # fmt: skip


def paths(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += paths(item, (*path, key))
    return found


def replaced(config: dict[str, Any], path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    result = copy.deepcopy(config)
    place: Any = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return result


def test_a_valid_manifest_passes() -> None:
    check_schema(valid_config())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("edit", "mode"), "delete", r"\$\.edit\.mode is 'delete'; expected one of"),
        (("edit", "operator"), "os.system", "expected one of"),
        (("edit", "atom_norm"), "free", "'unit'"),
        (("edit", "latent"), True, "types integer"),
        (("edit", "latent"), -1, "between 0"),
        (("edit", "strength"), -0.5, "between 0"),
        (("edit", "strength"), "2", "types number"),
        (("edit", "rows"), [1, 1], "differ"),
        (("edit", "rows"), [], "number of items"),
        (("edit", "target"), "salve", r"unknown fields \['target'\]"),
        (("edit", "site", "layout"), "nwhc", "one of"),
        (("digest",), "0" * 63, "matches"),
        (("digest",), "0" * 64 + "\n", "matches"),
        (("files", "edit.pt"), {"sha256": SHA, "size": 1}, "name of a field"),
        (("files", "../edit.safetensors"), {"sha256": SHA, "size": 1}, "name of a field"),
        (("files", "/etc/passwd"), {"sha256": SHA, "size": 1}, "name of a field"),
        (("files", "picture_a.png\n"), {"sha256": SHA, "size": 1}, "name of a field"),
        (("files", "picture_../../a.png"), {"sha256": SHA, "size": 1}, "name of a field"),
        (("merged", "pytorch_model.bin"), {"sha256": SHA, "size": 1}, "unknown fields"),
        (("dictionary", "at", "repo_id"), "../me", "matches"),
        (("dictionary", "at", "commit"), "main", "matches"),
        (("dictionary", "at", "subfolder"), "a/../b", "matches"),
        (("tensors", "shell"), {"dtype": "F32", "shape": []}, "name of a field"),
        (("base", "tensors"), {}, "number of fields"),
        (("base", "description", ""), 1, "name of a field"),
        (("labels",), "yes", "types array, null"),
        (("evaluation", "after"), {"accuracy": None}, "types number"),
    ],
)
def test_each_violation_names_its_place_and_what_was_expected(
    path: tuple[str, ...], value: object, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_schema(replaced(valid_config(), path, value))


def test_no_field_can_be_left_out() -> None:
    for name in valid_config():
        config = valid_config()
        del config[name]
        with pytest.raises(ArtifactError, match=name):
            check_schema(config)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.sampled_from(paths(valid_config())),
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["", "scale", "x\n", SHA, "edit.pt"])
    | st.lists(st.integers(0, 2), max_size=2)
    | st.dictionaries(st.sampled_from(["a", "..", "size"]), st.integers(0, 1), max_size=1),
)
def test_the_small_validator_agrees_with_the_jsonschema_package(
    path: tuple[str | int, ...], value: object
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    config = replaced(valid_config(), path, value)
    peer = jsonschema.Draft202012Validator(config_schema()).is_valid(config)
    try:
        check_schema(config)
        ours = True
    except ArtifactError:
        ours = False
    # The one difference on purpose: JSON Schema takes 1.0 for an integer, we do not.
    if peer and not ours:
        assert json.dumps(value).count(".0") > 0
    else:
        assert ours == peer


def test_the_shipped_schema_is_itself_a_valid_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(config_schema())
