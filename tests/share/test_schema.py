"""The typed fields of a manifest, and the schema that is made of them."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import small_assessment

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.edit_manifest import EditManifest

SHA = "0" * 64
RULED = {"operator", "provenance", "site", "targets"}
"""Parts of an edit that have rules beside their types."""


def valid_config() -> dict[str, Any]:
    """A small manifest with every optional part, right in form (its digests are invented)."""
    return {
        "alpha_crit": {
            "against": "label", "family": SHA, "network": SHA,
            "classes": [
                {"already": 0.0, "count": 3, "label": 1, "unreachable": 0.25,
                 "quantiles": {"0.1": 1, "0.25": 1.5, "0.5": 2.0, "0.75": 2.0, "0.9": None,
                               "0.95": None}}
            ],
            "fraction": None,
            "target": "zero",
        },
        "assessment": small_assessment().to_json(),
        "data": {"name": "digits", "images": 3},
        "dictionary": {
            "at": {"commit": SHA[:40], "repo_id": "me/dictionary", "subfolder": "a/b"},
            "digest": SHA, "fields": None, "learner": "l1",
        },
        "digest": SHA,
        "edit": {
            "base": {
                "description": {"architecture": "resnet18", "num_classes": 2},
                "network": SHA, "state": SHA,
                "tensors": {"fc.weight": {"dtype": "float32", "sha256": SHA, "shape": [2, 4]}},
            },
            "exactness": {"difference": 0.0, "effect": 1.5, "images": 2, "dtype": "float32"},
            "operator": {"form": "gate", "mode": "suppress", "strength": 2.0},
            "provenance": {"dictionary": SHA, "kind": "latents", "latents": [3], "note": ""},
            "rows": [1],
            "site": {
                "grid": None, "layout": "pooled", "module": "fc", "name": "unembed.hook_in",
                "prefix_tokens": 0, "readers": ["fc"], "side": "in", "width": 4, "writers": [],
                "affine": [],
            },
            "targets": [
                {"affine": [], "bias": None, "outputs": None, "role": "reader", "view": "linear",
                 "weight": "fc.weight"}
            ],
        },
        "evaluation": {"after": {"accuracy": 0.5}, "before": {"accuracy": 1}},
        "files": {"edit.safetensors": {"sha256": SHA, "size": 10}},
        "format_version": "2.0",
        "labels": ["no", "yes"],
        "manifest_sha256": SHA,
        "merged": {
            "config.json": {"sha256": SHA, "size": 1},
            "model.safetensors": {"sha256": SHA, "size": 2},
        },
        "producer": {"name": "salve_plugin", "version": "0.1.0"},
        "requires": ["alpha_crit", "gate"],
        "tensors": {"edit.directions": {"dtype": "F32", "shape": [1, 4]}},
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
    EditManifest.from_json(valid_config())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("edit", "operator", "mode"), "delete", r"value 'delete' - at `\$\.edit\.operator\.mode`"),
        (("edit", "operator", "form"), "os.system", "Invalid enum value"),
        (("edit", "provenance", "latents", 0), True, "Expected `int`, got `bool`"),
        (("edit", "provenance", "latents", 0), 3.0, "Expected `int`, got `float`"),
        (("edit", "provenance", "latents", 0), -1, "Expected `int` >= 0"),
        (("edit", "operator", "scale"), 0.5, r"numbers \['mode', 'scale', 'strength'\], expected"),
        (("edit", "operator"), {"form": "gate", "strength": 1.0}, r"numbers \['strength'\], exp"),
        (("edit", "operator"), {"form": "low_rank_map"}, r"expected \['scale'\]"),
        (("edit", "operator", "strength"), -0.5, "Expected `float` >= 0"),
        (("edit", "operator", "strength"), "2", "Expected `float`, got `str`"),
        (("edit", "rows"), [1, 1], "differ"),
        (("edit", "rows"), [], "of length >= 1"),
        (("edit", "target"), "salve", r"unknown fields \['target'\]"),
        (("edit", "site", "layout"), "nwhc", "Invalid enum value"),
        (("digest",), "0" * 63, "matching regex"),
        (("digest",), "0" * 64 + "\n", "of length <= 64"),
        (("files", "edit.pt"), {"sha256": SHA, "size": 1}, "at `key` in"),
        (("files", "../edit.safetensors"), {"sha256": SHA, "size": 1}, "at `key` in"),
        (("files", "/etc/passwd"), {"sha256": SHA, "size": 1}, "at `key` in"),
        (("files", "picture_a.png\n"), {"sha256": SHA, "size": 1}, "at `key` in"),
        (("files", "picture_../../a.png"), {"sha256": SHA, "size": 1}, "at `key` in"),
        (("files",), {}, r"edit\.safetensors is not among the files"),
        (("merged", "pytorch_model.bin"), {"sha256": SHA, "size": 1}, "Invalid enum value"),
        (("dictionary", "at", "repo_id"), "../me", "matching regex"),
        (("dictionary", "at", "commit"), "main", "matching regex"),
        (("dictionary", "at", "subfolder"), "a/../b", "matching regex"),
        (("tensors", "shell"), {"dtype": "F32", "shape": []}, "at `key` in"),
        (("edit", "base", "tensors"), {}, "of length >= 1"),
        (("edit", "base", "description", ""), 1, "at `key` in"),
        (("labels",), "yes", "Expected `array | null`, got `str`"),
        (("requires",), ["gate", "gate"], "named twice"),
        (("evaluation", "after"), {"accuracy": None}, "Expected `int | float`, got `null`"),
        (("evaluation", "after"), {"more": 1}, "measures after the edit: missing"),
    ],
)
def test_each_violation_names_its_place_and_what_was_expected(
    path: tuple[str, ...], value: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        EditManifest.from_json(replaced(valid_config(), path, value))


def test_no_field_can_be_left_out() -> None:
    for name in valid_config():
        config = valid_config()
        del config[name]
        with pytest.raises(InputError, match=name):
            EditManifest.from_json(config)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.sampled_from(paths(valid_config())),
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(-2, 2)
    | st.sampled_from(["", "gate", "x\n", SHA, "edit.pt"])
    | st.lists(st.integers(0, 2), max_size=2)
    | st.dictionaries(st.sampled_from(["a", "..", "size"]), st.integers(0, 1), max_size=1),
)
def test_the_types_agree_with_the_jsonschema_package(
    path: tuple[str | int, ...], value: object
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    config = replaced(valid_config(), path, value)
    peer = jsonschema.Draft202012Validator(EditArtifact.format.schema()).is_valid(config)
    try:
        EditManifest.from_json(config)
        ours = True
    except InputError:
        ours = False
    # The differences on purpose: JSON Schema takes 1.0 for an integer, we do not; and it cannot say
    # what two fields of one record must have in common.
    if peer and not ours:
        assert json.dumps(value).count(".0") > 0 or {"assessment", "evaluation", *RULED} & {*path}
    else:
        assert ours == peer


@pytest.mark.parametrize("kind", [EditArtifact, EditBundle, Dictionary])
def test_the_schema_of_every_kind_is_itself_a_valid_schema_and_leaves_no_field_free(
    kind: type[EditArtifact | EditBundle | Dictionary],
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema: Any = kind.format.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    records = [each for each in schema["$defs"].values() if "properties" in each]
    assert len(records) > 4
    assert all(each["additionalProperties"] is False for each in records)
    optional = {"k", "rescale_acts_by_decoder_norm", "mode", "scale", "strength"}
    assert all(set(each["properties"]) - set(each["required"]) <= optional for each in records)
