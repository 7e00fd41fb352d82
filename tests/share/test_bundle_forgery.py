"""Bundles that an attacker put together who knows the format: all digests right, still refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replaced import accepted
from small_artifacts import (
    CONFIG,
    Files,
    altered,
    bundle_in_memory,
    forged,
    identity,
    reseal,
    small_artifact,
    small_bundle,
    small_edit,
    tree,
)

from salve_plugin.errors import ArtifactError, MissingFileError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.edit_manifest import BUNDLE_FILE
from salve_plugin.store.seal import FileEntry

CARD = "README.md"


def reforged(files: Files, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Files:
    """Return a bundle with every digest of its manifest right, as an attacker would write it."""
    config = json.loads(files[BUNDLE_FILE])
    for name in config["members"]:
        data = files.get(f"{name}/{CONFIG}")
        if data is not None:
            config["files"][f"{name}/{CONFIG}"] = FileEntry.of(data)
            config["members"][name]["digest"] = json.loads(data)["digest"]
    change(config)
    config["digest"] = identity(config, {})
    return {**files, BUNDLE_FILE: reseal(config)}


def member_of(artifact: EditArtifact, tmp_path: Path) -> Files:
    return tree(artifact.save_pretrained(tmp_path / "member"))


def placed(files: Files, name: str) -> Files:
    return {f"{name}/{file}": data for file, data in files.items()}


def without(files: Files, name: str) -> Files:
    return {path: data for path, data in files.items() if not path.startswith(f"{name}/")}


def test_a_forgery_that_changes_nothing_is_accepted(bundle_files: Files) -> None:
    assert bundle_in_memory(reforged(bundle_files)) == small_bundle().digest


def test_a_missing_wrong_or_swapped_member_is_refused(bundle_files: Files, tmp_path: Path) -> None:
    strange = member_of(
        replace(small_artifact(), edit=altered(small_edit(), strength=9.0), assessment=None),
        tmp_path,
    )
    first, rows = (
        {path.partition("/")[2]: data for path, data in bundle_files.items() if path.startswith(n)}
        for n in ("first/", "rows/")
    )
    swapped = {**bundle_files, **placed(first, "rows"), **placed(rows, "first")}
    with pytest.raises(MissingFileError):
        bundle_in_memory(without(bundle_files, "rows"))
    with pytest.raises(MissingFileError):
        bundle_in_memory(reforged(without(bundle_files, "rows")))
    for files in ({**bundle_files, **placed(strange, "rows")}, swapped):
        with pytest.raises(ArtifactError, match=f"/{CONFIG} (was changed|has)"):
            bundle_in_memory(files)
        # With every digest made right, the composition tells.
        with pytest.raises(ArtifactError, match="contradicts"):
            bundle_in_memory(reforged(files))


def test_a_member_whose_manifest_is_right_but_not_the_artifact_is_refused(
    bundle_files: Files,
) -> None:
    def lie(config: dict[str, Any]) -> None:
        config["members"]["rows"]["digest"] = "0" * 64

    with pytest.raises(ArtifactError, match="member 'rows' is the artifact"):
        bundle_in_memory(reforged(bundle_files, lie))


def test_an_extra_or_left_out_member_contradicts_the_composition(bundle_files: Files) -> None:
    def add(config: dict[str, Any]) -> None:
        config["members"]["twin"] = config["members"]["first"]
        config["files"][f"twin/{CONFIG}"] = config["files"][f"first/{CONFIG}"]

    def leave_out(config: dict[str, Any]) -> None:
        del config["members"]["first"], config["files"][f"first/{CONFIG}"]

    twin = {path.replace("first/", "twin/"): data for path, data in bundle_files.items()}
    with pytest.raises(ArtifactError, match="'first' and 'twin' are the same edit"):
        bundle_in_memory(reforged({**bundle_files, **twin}, add))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        bundle_in_memory(reforged(bundle_files, leave_out))


def test_a_member_of_another_base_is_refused(bundle_files: Files) -> None:
    def other(config: dict[str, Any], _: object) -> None:
        config["edit"]["base"]["description"] = {"architecture": "Other"}

    member = {
        path.removeprefix("first/"): data
        for path, data in bundle_files.items()
        if path.startswith("first/")
    }
    files = {**bundle_files, **placed(forged(member, other), "first")}
    with pytest.raises(ArtifactError, match="have different bases"):
        bundle_in_memory(reforged(files))


def composition(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of one value in the composition."""

    def change(config: dict[str, Any]) -> None:
        place: Any = config["composition"]
        for key in path[:-2]:
            place = place[key]
        place[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (composition("overlaps", []), "of overlaps"),
        (composition("overlaps", 0, "rows", [0, 1]), "of overlaps"),
        (composition("overlaps", 0, "second", "rows"), "of overlaps"),
        (composition("tensors", "fc.weight", "rows_after", "0" * 64), "contradicts itself"),
        (composition("tensors", "fc.weight", "rows", [0, 1, 2]), "contradicts itself"),
        (composition("tensors", "fc.weight", "before", "sha256", "0" * 64), "for another"),
        (composition("tensors", "fc.weight", "before", "shape", [2**50, 2**50]), "for another"),
        (composition("tensors", "fc.weight", "hook", "os.system"), "unknown fields"),
        (lambda config: config.update(requires=["sum"]), r"requires \['sum'\]"),
        (lambda config: config.update(requires=[]), "`array` of length >= 1"),
        (lambda config: config.update(format_version="3.0"), "upgrade"),
        (lambda config: config.update(labels=["x"]), r"\['labels'\] do not follow"),
        (lambda config: config["base"].update(description={}), r"\['base'\] do not follow"),
        (
            lambda config: config["members"]["rows"]["edit"]["operator"].update(strength=9.0),
            r"\['members'\]",
        ),
        (
            lambda config: config["members"].update({"../x": config["members"]["all"]}),
            "at `key` in",
        ),
        (
            lambda config: config["files"].update({"x.pkl": {}}),
            "at `key` in",
        ),
        (lambda config: config["files"].pop(f"all/{CONFIG}"), "manifests of members: missing"),
        (lambda config: config["evaluation"]["after"].update(more=1), "measures after"),
    ],
)
def test_a_forged_manifest_is_refused_for_its_content(
    bundle_files: Files, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        bundle_in_memory(reforged(bundle_files, change))


def test_a_wrong_digest_of_the_bundle_itself_is_refused(bundle_files: Files) -> None:
    config = json.loads(bundle_files[BUNDLE_FILE])
    config["digest"] = "0" * 64
    with pytest.raises(ArtifactError, match="the bundle is"):
        bundle_in_memory({**bundle_files, BUNDLE_FILE: reseal(config)})


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_and_sealed_anew_raises_only_our_errors(
    data: st.DataObject, bundle_files: Files
) -> None:
    said = json.loads(bundle_files[BUNDLE_FILE])["digest"]

    def seal(config: dict[str, Any]) -> bytes:
        if config["digest"] == said:  # not what was replaced
            config["digest"] = identity(config, {})
        return reseal(config)

    place = accepted(
        data,
        bundle_files[BUNDLE_FILE],
        seal,
        lambda manifest: bundle_in_memory({**bundle_files, BUNDLE_FILE: manifest}),
    )
    # What passes differs in a field that is free: a name, a number in a table.
    assert place is None or place[0] in (
        "data", "evaluation", "producer", "format_version", "manifest_sha256",
    )  # fmt: skip


def test_a_link_in_place_of_a_member_is_refused(saved_bundle: Path, tmp_path: Path) -> None:
    (saved_bundle / "first").rename(tmp_path / "elsewhere")
    (saved_bundle / "first").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="first is a link"):
        EditBundle.from_pretrained(saved_bundle)
