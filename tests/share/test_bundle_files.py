"""A bundle as files: what is in them, and that every bit of them is guarded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from small_artifacts import (
    CONFIG,
    Files,
    altered,
    bundle_in_memory,
    flipped,
    small_bundle,
    small_edit,
    small_model,
    tree,
)

from salve_plugin.errors import ArtifactError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.edit_manifest import BUNDLE_FILE

CARD = "README.md"


# --- the format ----------------------------------------------------------------------------------


def test_everything_survives_and_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    bundle = small_bundle()
    bundle.save_pretrained(tmp_path / "one")
    first = tree(tmp_path / "one")
    loaded = EditBundle.from_pretrained(tmp_path / "one")
    assert (loaded.digest, loaded.composition) == (bundle.digest, bundle.composition)
    assert (loaded.evaluation, loaded.data) == (bundle.evaluation, bundle.data)
    assert list(loaded.members) == ["all", "first", "rows"]
    assert not any(member.diff(bundle.members[name]) for name, member in loaded.members.items())
    loaded.save_pretrained(tmp_path / "two")
    bundle.save_pretrained(tmp_path / "one")
    assert tree(tmp_path / "one") == tree(tmp_path / "two") == first
    assert set(first) == {
        *(f"{name}/{file}" for name in ("all", "first", "rows")
          for file in (CARD, "edit.safetensors", CONFIG)),
        "rows/picture_heat_map.png", CARD, BUNDLE_FILE,
    }  # fmt: skip


def test_a_member_is_a_complete_artifact_of_its_own(saved_bundle: Path, tmp_path: Path) -> None:
    bundle = small_bundle()
    for name, member in bundle.members.items():
        loaded = EditArtifact.from_pretrained(saved_bundle, subfolder=name)
        assert loaded.digest == member.digest
        assert tree(saved_bundle / name) == tree(member.save_pretrained(tmp_path / name))


def test_identity_and_seal_are_what_the_schema_says(saved_bundle: Path) -> None:
    config = json.loads((saved_bundle / BUNDLE_FILE).read_text())
    left_out = ("digest", "files", "format_version", "manifest_sha256", "producer")
    said = {name: value for name, value in config.items() if name not in left_out}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    block = len(text).to_bytes(8, "little") + text
    assert hashlib.sha256(block).hexdigest() == config["digest"] == small_bundle().digest
    lines = (saved_bundle / BUNDLE_FILE).read_bytes().splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b'  "manifest_sha256"'))
    assert hashlib.sha256(others).hexdigest() == config["manifest_sha256"]


def test_the_manifest_is_valid_for_the_jsonschema_package(saved_bundle: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = EditBundle.format.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(
        json.loads((saved_bundle / BUNDLE_FILE).read_text())
    )


def test_verify_and_inspect_tell_what_is_there(
    saved_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EditBundle.verify(saved_bundle) == small_bundle().digest

    def no_tensors(*_: object) -> None:
        raise AssertionError("tensors were opened")

    monkeypatch.setattr("salve_plugin.share.artifact.decode_tensors", no_tensors)
    said: dict[str, Any] = EditBundle.inspect(saved_bundle)
    assert said["digest"] == small_bundle().digest
    assert set(said["members"]) == {"all", "first", "rows"}
    assert said["members"]["rows"]["edit"]["operator"]["strength"] == 1.5
    assert (said["card"], said["origin"]) == ("as written", None)
    covered = {name: data for name, data in tree(saved_bundle).items() if not name.endswith(CARD)}
    assert said["bytes"] == sum(map(len, covered.values()))
    json.dumps(said, allow_nan=False)
    (saved_bundle / CARD).write_text("Mine.")
    assert EditBundle.inspect(saved_bundle)["card"] == "edited"
    (saved_bundle / "rows" / "edit.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"edit\.safetensors has 0 bytes"):
        EditBundle.inspect(saved_bundle)


def test_the_card_tabulates_the_members_and_loads_in_the_hubs_own_class(saved_bundle: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(saved_bundle / CARD)
    assert card.data.library_name == "salve_plugin"
    assert "model-editing" in card.data.tags
    text = card.text
    assert "# Tiny with 3 edits" in text
    row = "| [rows](rows) | suppress latent 5 at `unembed.hook_in` | ü\\|x (1), &lt;b&gt; (2) | 1.5"
    assert f"{row} | accuracy of ü\\|x 0.75 → 0.25 |" in text
    assert "| [all](all) | enhance latent 1 at `unembed.hook_in` | all | 0.5 | not given |" in text
    assert "| all | rows | `fc.weight` | ü\\|x (1), &lt;b&gt; (2) |" in text
    assert "| accuracy | 0.75 | 0.125 |" in text
    assert small_bundle().digest in text


def test_class_names_are_those_that_all_members_agree_on() -> None:
    edit = small_edit()
    one = EditArtifact(edit, labels=("a", "b", "c"))
    for labels, expected in (
        (None, ["a", "b", "c"]), (("a", "b", "c"), ["a", "b", "c"]), (("a", "b", "d"), None)
    ):  # fmt: skip
        two = EditArtifact(altered(edit, strength=0.5), labels=labels)
        bundle = EditBundle.of(small_model(), {"one": one, "two": two})
        assert bundle.manifest["labels"] == expected


# --- every bit -----------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_detected(bundle_files: Files) -> None:
    manifest = bundle_files[BUNDLE_FILE]
    EditBundle.format.read(manifest)
    # A stride that is prime to 8: every byte at least once, every bit position as often.
    for bit in range(0, 8 * len(manifest), 7):
        with pytest.raises(ArtifactError):
            EditBundle.format.read(flipped(manifest, bit))


@pytest.mark.slow
def test_every_flipped_bit_of_the_manifest_is_detected(bundle_files: Files) -> None:
    manifest = bundle_files[BUNDLE_FILE]
    for bit in range(8 * len(manifest)):
        with pytest.raises(ArtifactError):
            EditBundle.format.read(flipped(manifest, bit))


def test_a_changed_byte_in_any_file_of_any_member_is_detected(bundle_files: Files) -> None:
    assert bundle_in_memory(bundle_files) == small_bundle().digest
    for name, data in bundle_files.items():
        if name.endswith(CARD):
            continue
        for bit in range(3, 8 * len(data), max(1, 8 * len(data) // 12)):
            with pytest.raises(ArtifactError):
                bundle_in_memory({**bundle_files, name: flipped(data, bit)})
