"""A bundle as files: what is in them, what is refused, and saving over an older one."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import (
    CONFIG,
    Files,
    flipped,
    forged,
    reader_of,
    reseal,
    small_artifact,
    small_bundle,
    small_edit,
    small_model,
    tree,
)

from salve_plugin.errors import ArtifactError, InputError, MissingFileError, SalveError, WriteError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.share.bundle_contents import bundle_fields
from salve_plugin.share.bundle_files import (
    BUNDLE_FILE,
    SCHEMA_NAME,
    read_bundle,
    read_bundle_manifest,
)
from salve_plugin.share.manifest import entry_of, identity
from salve_plugin.share.schema import config_schema

CARD = "README.md"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bundle of three members in a folder."""
    return small_bundle().save_pretrained(tmp_path / "bundle")


@pytest.fixture(scope="module")
def bundle_files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The same in memory; read-only."""
    return tree(small_bundle().save_pretrained(tmp_path_factory.mktemp("bundle")))


def in_memory(files: Files) -> str:
    """Verify a bundle that lies in memory; return its digest."""

    def read(name: str, limit: int) -> bytes:
        if name not in files:
            raise MissingFileError(f"cannot read {name}")
        return reader_of(files)(name, limit)

    config, _ = read_bundle(read)
    return str(config["digest"])


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


def test_a_member_is_a_complete_artifact_of_its_own(saved: Path, tmp_path: Path) -> None:
    bundle = small_bundle()
    for name, member in bundle.members.items():
        loaded = EditArtifact.from_pretrained(saved, subfolder=name)
        assert loaded.digest == member.digest
        assert tree(saved / name) == tree(member.save_pretrained(tmp_path / name))


def test_identity_and_seal_are_what_the_schema_says(saved: Path) -> None:
    config = json.loads((saved / BUNDLE_FILE).read_text())
    left_out = ("digest", "files", "format_version", "manifest_sha256", "producer")
    said = {name: value for name, value in config.items() if name not in left_out}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    block = len(text).to_bytes(8, "little") + text
    assert hashlib.sha256(block).hexdigest() == config["digest"] == small_bundle().digest
    lines = (saved / BUNDLE_FILE).read_bytes().splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b'  "manifest_sha256"'))
    assert hashlib.sha256(others).hexdigest() == config["manifest_sha256"]


def test_the_manifest_is_valid_for_the_jsonschema_package(saved: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = config_schema(SCHEMA_NAME)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(json.loads((saved / BUNDLE_FILE).read_text()))


def test_verify_and_inspect_tell_what_is_there(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EditBundle.verify(saved) == small_bundle().digest

    def no_tensors(*_: object) -> None:
        raise AssertionError("tensors were opened")

    monkeypatch.setattr("salve_plugin.share.reading.decode_tensors", no_tensors)
    said: dict[str, Any] = EditBundle.inspect(saved)
    assert said["digest"] == small_bundle().digest
    assert set(said["members"]) == {"all", "first", "rows"}
    assert said["members"]["rows"]["edit"]["strength"] == 1.5
    assert (said["card"], said["origin"]) == ("as written", None)
    covered = {name: data for name, data in tree(saved).items() if not name.endswith(CARD)}
    assert said["bytes"] == sum(map(len, covered.values()))
    json.dumps(said, allow_nan=False)
    (saved / CARD).write_text("Mine.")
    assert EditBundle.inspect(saved)["card"] == "edited"
    (saved / "rows" / "edit.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"edit\.safetensors has 0 bytes"):
        EditBundle.inspect(saved)


def test_the_card_tabulates_the_members_and_loads_in_the_hubs_own_class(saved: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(saved / CARD)
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
        two = EditArtifact(replace(edit, strength=0.5), labels=labels)
        bundle = EditBundle.of(small_model(), {"one": one, "two": two})
        assert bundle_fields(bundle)["labels"] == expected


# --- every bit -----------------------------------------------------------------------------------


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_detected(bundle_files: Files) -> None:
    manifest = bundle_files[BUNDLE_FILE]
    read_bundle_manifest(manifest)
    # A stride that is prime to 8: every byte at least once, every bit position as often.
    for bit in range(0, 8 * len(manifest), 7):
        with pytest.raises(ArtifactError):
            read_bundle_manifest(flipped(manifest, bit))


@pytest.mark.slow
def test_every_flipped_bit_of_the_manifest_is_detected(bundle_files: Files) -> None:
    manifest = bundle_files[BUNDLE_FILE]
    for bit in range(8 * len(manifest)):
        with pytest.raises(ArtifactError):
            read_bundle_manifest(flipped(manifest, bit))


def test_a_changed_byte_in_any_file_of_any_member_is_detected(bundle_files: Files) -> None:
    assert in_memory(bundle_files) == small_bundle().digest
    for name, data in bundle_files.items():
        if name.endswith(CARD):
            continue
        for bit in range(3, 8 * len(data), max(1, 8 * len(data) // 12)):
            with pytest.raises(ArtifactError):
                in_memory({**bundle_files, name: flipped(data, bit)})


# --- what is refused -----------------------------------------------------------------------------


def reforged(files: Files, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Files:
    """Return a bundle with every digest of its manifest right, as an attacker would write it."""
    config = json.loads(files[BUNDLE_FILE])
    for name in config["members"]:
        data = files.get(f"{name}/{CONFIG}")
        if data is not None:
            config["files"][f"{name}/{CONFIG}"] = entry_of(data)
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
    assert in_memory(reforged(bundle_files)) == small_bundle().digest


def test_a_missing_wrong_or_swapped_member_is_refused(bundle_files: Files, tmp_path: Path) -> None:
    strange = member_of(
        replace(small_artifact(), edit=replace(small_edit(), strength=9.0)), tmp_path
    )
    first, rows = (
        {path.partition("/")[2]: data for path, data in bundle_files.items() if path.startswith(n)}
        for n in ("first/", "rows/")
    )
    swapped = {**bundle_files, **placed(first, "rows"), **placed(rows, "first")}
    with pytest.raises(MissingFileError):
        in_memory(without(bundle_files, "rows"))
    with pytest.raises(MissingFileError):
        in_memory(reforged(without(bundle_files, "rows")))
    for files in ({**bundle_files, **placed(strange, "rows")}, swapped):
        with pytest.raises(ArtifactError, match=f"/{CONFIG} (was changed|has)"):
            in_memory(files)
        # With every digest made right, the composition tells.
        with pytest.raises(ArtifactError, match="contradicts"):
            in_memory(reforged(files))


def test_a_member_whose_manifest_is_right_but_not_the_artifact_is_refused(
    bundle_files: Files,
) -> None:
    def lie(config: dict[str, Any]) -> None:
        config["members"]["rows"]["digest"] = "0" * 64

    with pytest.raises(ArtifactError, match="member 'rows' is the artifact"):
        in_memory(reforged(bundle_files, lie))


def test_an_extra_or_left_out_member_contradicts_the_composition(bundle_files: Files) -> None:
    def add(config: dict[str, Any]) -> None:
        config["members"]["twin"] = config["members"]["first"]
        config["files"][f"twin/{CONFIG}"] = config["files"][f"first/{CONFIG}"]

    def leave_out(config: dict[str, Any]) -> None:
        del config["members"]["first"], config["files"][f"first/{CONFIG}"]

    twin = {path.replace("first/", "twin/"): data for path, data in bundle_files.items()}
    with pytest.raises(ArtifactError, match="'first' and 'twin' are the same edit"):
        in_memory(reforged({**bundle_files, **twin}, add))
    with pytest.raises(ArtifactError, match="contradicts itself"):
        in_memory(reforged(bundle_files, leave_out))


def test_a_member_of_another_base_is_refused(bundle_files: Files) -> None:
    def other(config: dict[str, Any], _: object) -> None:
        config["base"]["description"] = {"architecture": "Other"}

    member = {
        path.removeprefix("first/"): data
        for path, data in bundle_files.items()
        if path.startswith("first/")
    }
    files = {**bundle_files, **placed(forged(member, other), "first")}
    with pytest.raises(ArtifactError, match="have different bases"):
        in_memory(reforged(files))


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
        (lambda config: config.update(requires=[]), "number of items"),
        (lambda config: config.update(format_version="2.0"), "upgrade"),
        (lambda config: config.update(labels=["x"]), r"\['labels'\] do not follow"),
        (lambda config: config["base"].update(description={}), r"\['base'\] do not follow"),
        (lambda config: config["members"]["rows"]["edit"].update(strength=9.0), r"\['members'\]"),
        (lambda config: config["members"].update({"../x": config["members"]["all"]}), "name of a"),
        (lambda config: config["files"].update({"x.pkl": {}}), "name of a"),
        (lambda config: config["files"].pop(f"all/{CONFIG}"), "manifests of members: missing"),
        (lambda config: config["evaluation"]["after"].update(more=1), "measures after"),
    ],
)
def test_a_forged_manifest_is_refused_for_its_content(
    bundle_files: Files, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        in_memory(reforged(bundle_files, change))


def test_a_wrong_digest_of_the_bundle_itself_is_refused(bundle_files: Files) -> None:
    config = json.loads(bundle_files[BUNDLE_FILE])
    config["digest"] = "0" * 64
    with pytest.raises(ArtifactError, match="the bundle is"):
        in_memory({**bundle_files, BUNDLE_FILE: reseal(config)})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: list[tuple[Any, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    below = [place for key, item in inner for place in places(item, (*path, key))]
    return [path, *below] if path else below


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_and_sealed_anew_raises_only_our_errors(
    data: st.DataObject, bundle_files: Files
) -> None:
    config = json.loads(bundle_files[BUNDLE_FILE])
    place = data.draw(st.sampled_from(places(config)))
    target: Any = config
    for key in place[:-1]:
        target = target[key]
    before = target[place[-1]]
    target[place[-1]] = data.draw(json_values)
    if target[place[-1]] == before:
        return
    try:
        if place[0] != "digest":
            config["digest"] = identity(config, {})
        manifest = reseal(config)
    except ValueError:  # not even JSON: NaN and the like, as a careless program writes it
        manifest = json.dumps(config).encode(errors="surrogatepass")
    try:
        in_memory({**bundle_files, BUNDLE_FILE: manifest})
    except SalveError:
        return
    # What passes differs in a field that is free: a name, a number in a table.
    assert place[0] in ("data", "evaluation", "producer", "format_version", "manifest_sha256")


def test_a_link_in_place_of_a_member_is_refused(saved: Path, tmp_path: Path) -> None:
    (saved / "first").rename(tmp_path / "elsewhere")
    (saved / "first").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="first is a link"):
        EditBundle.from_pretrained(saved)


# --- saving over an older bundle -----------------------------------------------------------------


def fewer() -> EditBundle:
    """Return another bundle of the same base: a member left out, one changed, one new."""
    old = small_bundle()
    changed = replace(old.members["rows"], edit=replace(small_edit(), strength=0.25), pictures=None)
    new = EditArtifact(replace(small_edit(), latent=9, rows=(0,)))
    members = {"all": old.members["all"], "rows": changed, "new": new}
    return EditBundle.of(small_model(), members)


def test_an_older_bundle_is_replaced_and_other_files_stay(saved: Path, tmp_path: Path) -> None:
    (saved / "notes.txt").write_bytes(b"mine")
    (saved / "first" / "notes.txt").write_bytes(b"mine too")
    fewer().save_pretrained(saved)
    fresh = tree(fewer().save_pretrained(tmp_path / "fresh"))
    assert tree(saved) == {**fresh, "notes.txt": b"mine", "first/notes.txt": b"mine too"}
    (saved / "first" / "notes.txt").unlink()
    small_bundle().save_pretrained(saved)
    assert not (saved / "new").exists()
    assert EditBundle.verify(saved) == small_bundle().digest


def test_a_left_out_member_that_somebody_changed_is_not_removed(saved: Path) -> None:
    other = replace(small_artifact(), edit=replace(small_edit(), rows=(0,)), pristine=None)
    other.save_pretrained(saved / "first")
    (saved / "rows" / CARD).write_text("# My words\n")
    members = {"all": small_bundle().members["all"]}
    EditBundle.of(small_model(), members).save_pretrained(saved)
    assert EditArtifact.verify(saved / "first") == other.digest
    assert set(tree(saved / "rows")) == {CARD}
    assert EditBundle.verify(saved) == EditBundle.of(small_model(), members).digest


def test_peoples_words_in_cards_stay(saved: Path) -> None:
    for card in (saved / CARD, saved / "rows" / CARD):
        card.write_text("# My words\n")
    fewer().save_pretrained(saved)
    for card in (saved / CARD, saved / "rows" / CARD):
        assert card.read_text().endswith("# My words\n")
    assert "# Tiny with" in (saved / "all" / CARD).read_text()


def test_a_bundle_is_not_written_over_an_artifact(tmp_path: Path) -> None:
    small_artifact().save_pretrained(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="choose another folder"):
        small_bundle().save_pretrained(tmp_path)
    assert tree(tmp_path) == before
    with pytest.raises(MissingFileError, match=r"edit_bundle\.json"):
        EditBundle.from_pretrained(tmp_path)


@pytest.mark.parametrize("failing", range(1, 13))
def test_an_error_in_the_middle_leaves_the_old_bundle_whole(
    saved: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, new = tree(saved), fewer()
    real, calls = os.replace, []

    def full(source: object, target: object) -> None:
        if ".salve-" not in str(target):
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", full)
    if failing == 12:  # eleven files: the last case shows that every rename was met
        new.save_pretrained(saved)
        assert len(calls) == 11
        return
    with pytest.raises(WriteError, match="No space left"):
        new.save_pretrained(saved)
    monkeypatch.undo()
    assert tree(saved) == before
    assert [path.name for path in saved.iterdir() if path.is_dir()].count("new") == 0
    assert EditBundle.verify(saved) == small_bundle().digest


DIE_AT_A_RENAME = """
import os, sys
from salve_plugin.share.bundle import EditBundle
old, new, last = sys.argv[1], EditBundle.from_pretrained(sys.argv[2]), int(sys.argv[3])
real, count = os.replace, 0
def rename(source, target):
    global count
    if ".salve-" not in str(target):
        count += 1
        if count == last:
            os._exit(9)
    real(source, target)
os.replace = rename
new.save_pretrained(old)
"""


@pytest.mark.parametrize(("last", "accepted"), [(9, True), (10, False), (11, False)])
def test_a_crash_between_two_renames_leaves_the_old_bundle_or_one_that_is_refused(
    saved: Path, tmp_path: Path, last: int, accepted: bool
) -> None:
    new = fewer().save_pretrained(tmp_path / "new")
    command = [sys.executable, "-c", DIE_AT_A_RENAME, str(saved), str(new), str(last)]
    assert subprocess.run(command, check=False).returncode == 9
    if accepted:  # no file that the old bundle knows of has other bytes yet
        assert EditBundle.verify(saved) == small_bundle().digest
    else:
        with pytest.raises(ArtifactError, match=r"was changed|has \d+ bytes"):
            EditBundle.verify(saved)
    fewer().save_pretrained(saved)
    assert EditBundle.verify(saved) == fewer().digest
