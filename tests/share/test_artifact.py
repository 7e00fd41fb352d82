"""An artifact as its user meets it: saved, loaded, applied, reverted, damaged, overwritten."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.demo import digits
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import (
    ArtifactError,
    BaseMismatchError,
    EditStateError,
    InputError,
    SalveError,
    WriteError,
)
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.contents import Contents

WEIGHT = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [-1, -2, -3, -4]])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def changed(artifact: EditArtifact, **parts: Any) -> EditArtifact:
    """Return the artifact with some parts replaced."""
    return replace(artifact, **parts)


def tiny_model() -> nn.Module:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(4, 3))
    with torch.no_grad():
        model.get_parameter("fc.weight").copy_(WEIGHT)
    return model


def state_bytes(model: nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
    }


def assert_same(one: EditArtifact, other: EditArtifact) -> None:
    assert one.digest == other.digest
    assert one.edit == other.edit
    for name, tensor in (one.pristine or {}).items():
        assert torch.equal(tensor, (other.pristine or {})[name])
    assert one.evaluation == other.evaluation
    assert one.pictures == other.pictures
    assert list(one.labels or ()) == list(other.labels or ())
    if one.alpha_crit is not None:
        assert other.alpha_crit is not None
        assert torch.equal(one.alpha_crit.values, other.alpha_crit.values)
        assert torch.equal(one.alpha_crit.linear, other.alpha_crit.linear)
        assert torch.equal(one.alpha_crit.labels, other.alpha_crit.labels)


def random_dictionary(hooked: salve.HookedModel, latents: int = 16) -> Dictionary:
    from salve_plugin.discover.learners import create

    site = hooked.site("unembed.hook_in")
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(latents, site.width, generator=generator)
    atoms = nn.functional.normalize(atoms, dim=1)
    tensors = {
        "atoms": atoms,
        "encoder_weight": atoms.clone(),
        "encoder_bias": torch.zeros(latents),
        "decoder_bias": torch.zeros(site.width),
    }
    return Dictionary(tensors, create("l1", {}), site, {"seed": 0})


# --- the whole way, on real networks -------------------------------------------------------------


def test_an_edit_of_a_real_network_is_saved_loaded_applied_and_reverted_bit_for_bit(
    digits_network: nn.Module, digits_train: digits.Split, digits_test: digits.Split, tmp_path: Path
) -> None:
    fresh = deepcopy(digits_network)
    hooked = salve.attach(digits_network)
    few = digits.Split(digits_train.images[:200], digits_train.labels[:200])
    acts = salve.record(hooked, few.batches(), folder=tmp_path / "acts", progress=False)
    dictionary = salve.fit(acts, "l1", n_latents=32, steps=50)
    latent = salve.profile(dictionary, acts).dominant(3)
    edit = salve.suppress(hooked, dictionary, latent=latent, strength=2.5)
    crit = salve.alpha_crit(hooked, edit, acts)
    original = state_bytes(digits_network)

    artifact = EditArtifact.of(hooked, edit, dictionary=dictionary, alpha_crit=crit)
    artifact.save_pretrained(tmp_path / "artifact")
    with edit.applied(digits_network), torch.no_grad():
        expected = digits_network(digits_test.images[:64])

    loaded = EditArtifact.from_pretrained(tmp_path / "artifact")
    assert_same(artifact, loaded)
    loaded.edit.apply_(fresh)
    with torch.no_grad():
        assert torch.equal(fresh(digits_test.images[:64]), expected)
    assert state_bytes(fresh) != original
    loaded.revert_(fresh)
    assert state_bytes(fresh) == original


def test_a_model_saved_in_edited_form_is_restored_from_the_pristine_rows(
    digits_resnet: nn.Module, tmp_path: Path
) -> None:
    hooked = salve.attach(digits_resnet)
    original = state_bytes(digits_resnet)
    for rows in (None, (3, 5)):
        edit = salve.suppress(hooked, random_dictionary(hooked), latent=7, strength=4.0, rows=rows)
        EditArtifact.of(hooked, edit).save_pretrained(tmp_path / "artifact")
        edited = edit.edited(digits_resnet).state_dict()
        digits_resnet.load_state_dict(edited)  # as a model that somebody else loads
        assert state_bytes(digits_resnet) != original
        EditArtifact.from_pretrained(tmp_path / "artifact").revert_(digits_resnet)
        assert state_bytes(digits_resnet) == original


def test_pristine_rows_are_taken_while_the_edit_is_applied_too(digits_vit: nn.Module) -> None:
    hooked = salve.attach(digits_vit)
    edit = salve.enhance(hooked, random_dictionary(hooked), latent=0, strength=1.0)
    before = EditArtifact.of(hooked, edit)
    with edit.applied(hooked):
        assert EditArtifact.of(hooked, edit).digest == before.digest


def test_another_model_is_refused(digits_resnet: nn.Module, tmp_path: Path) -> None:
    hooked = salve.attach(digits_resnet)
    edit = salve.suppress(hooked, random_dictionary(hooked), latent=1, strength=1.0)
    EditArtifact.of(hooked, edit).save_pretrained(tmp_path)
    artifact = EditArtifact.from_pretrained(tmp_path)
    with torch.no_grad():
        weight = digits_resnet.get_parameter("fc.weight")
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))
    with pytest.raises(BaseMismatchError, match=r"fc\.weight"):
        artifact.edit.apply_(digits_resnet)
    with pytest.raises(BaseMismatchError):
        artifact.edit.apply_(digits.build("vit"))


def test_reverting_what_was_never_applied_or_cannot_be_is_explained(tiny: EditArtifact) -> None:
    model = tiny_model()
    before = state_bytes(model)
    with pytest.raises(EditStateError):
        tiny.revert_(model)
    with pytest.raises(EditStateError, match="no pristine rows"):
        changed(tiny, pristine=None).revert_(model)
    assert state_bytes(model) == before


# --- the format ----------------------------------------------------------------------------------


def test_everything_survives_and_saving_twice_gives_the_same_bytes(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "one")
    loaded = EditArtifact.from_pretrained(tmp_path / "one")
    assert_same(tiny, loaded)
    assert loaded.data == tiny.data
    loaded.save_pretrained(tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    tiny.save_pretrained(tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == [
        "README.md",
        "edit.safetensors",
        "edit_config.json",
        "picture_heat_map.png",
    ]


def test_an_edit_alone_is_enough(tiny_edit: Edit, tmp_path: Path) -> None:
    EditArtifact(tiny_edit).save_pretrained(tmp_path)
    loaded = EditArtifact.from_pretrained(tmp_path)
    assert loaded.edit == tiny_edit
    empty = {field.name for field in fields(Contents)} - {"edit", "embed_dictionary", "data"}
    assert {name: getattr(loaded, name) for name in empty} == dict.fromkeys(empty)


def test_nothing_else_than_the_listed_fields_enters_the_identity(
    tiny: EditArtifact, tiny_edit: Edit, png: bytes
) -> None:
    variants = [
        tiny,
        changed(tiny, edit=replace(tiny_edit, strength=1.0)),
        changed(tiny, edit=replace(tiny_edit, latent=6)),
        changed(tiny, edit=replace(tiny_edit, mode="enhance")),
        changed(tiny, edit=replace(tiny_edit, direction=-tiny_edit.direction)),
        changed(tiny, pristine=None),
        changed(tiny, labels=None),
        changed(tiny, data=None),
        changed(tiny, evaluation=None),
        changed(tiny, alpha_crit=None),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert changed(tiny, pictures=None).digest == tiny.digest
    assert changed(tiny, pictures={"other": png}).digest == tiny.digest


def test_the_identity_is_what_the_manifest_says_it_is(tiny: EditArtifact, tmp_path: Path) -> None:
    """Recomputed from the files alone, by the description in the schema."""
    import safetensors.torch

    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "edit_config.json").read_text())
    state = hashlib.sha256()

    def block(data: bytes) -> None:
        state.update(len(data).to_bytes(8, "little") + data)

    def canonical(value: object) -> bytes:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return text.encode()

    left_out = ("digest", "files", "format_version", "manifest_sha256", "merged", "producer")
    block(canonical({name: value for name, value in config.items() if name not in left_out}))
    tensors = safetensors.torch.load_file(tmp_path / "edit.safetensors")
    for name, tensor in sorted(tensors.items()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        block(canonical({"name": name, "dtype": dtype, "shape": list(tensor.shape)}))
        block(tensor.numpy().tobytes())
    assert state.hexdigest() == config["digest"] == tiny.digest
    lines = (tmp_path / "edit_config.json").read_bytes().splitlines(keepends=True)
    others = b"".join(line for line in lines if not line.startswith(b'  "manifest_sha256"'))
    assert hashlib.sha256(others).hexdigest() == config["manifest_sha256"]


def test_the_manifest_is_valid_for_the_jsonschema_package(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from salve_plugin.share.schema import config_schema

    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "edit_config.json").read_text())
    jsonschema.Draft202012Validator(config_schema()).validate(config)


def test_safetensors_metadata_are_exactly_the_format(tiny: EditArtifact, tmp_path: Path) -> None:
    from safetensors import safe_open

    tiny.save_pretrained(tmp_path)
    with safe_open(tmp_path / "edit.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_strengths_that_no_image_has_are_counted_and_kept_as_infinity(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    said = EditArtifact.inspect(tmp_path)["alpha_crit"]
    assert isinstance(said, dict)
    low = dict.fromkeys(("0.1", "0.25", "0.5"))
    high = dict.fromkeys(("0.75", "0.9", "0.95"))
    assert said["classes"] == [
        {"label": 1, "count": 2, "already": 0.0, "unreachable": 0.5,
         "quantiles": dict.fromkeys(low, 1.25) | high},
        {"label": 2, "count": 2, "already": 0.5, "unreachable": 0.0,
         "quantiles": dict.fromkeys(low, 0.0) | dict.fromkeys(high, 2.5)},
    ]  # fmt: skip
    loaded = EditArtifact.from_pretrained(tmp_path).alpha_crit
    assert loaded is not None
    assert loaded.values.tolist() == [1.25, float("inf"), 0.0, 2.5]
    assert b"nfinity" not in (tmp_path / "edit_config.json").read_bytes()


def test_a_dictionary_travels_by_reference_or_whole(
    digits_resnet: nn.Module, tmp_path: Path
) -> None:
    hooked = salve.attach(digits_resnet)
    dictionary = random_dictionary(hooked)
    edit = salve.suppress(hooked, dictionary, latent=1, strength=1.0)
    EditArtifact(edit, dictionary=dictionary).save_pretrained(tmp_path / "reference")
    loaded = EditArtifact.from_pretrained(tmp_path / "reference")
    assert (loaded.dictionary, loaded.dictionary_learner) == (None, "l1")
    EditArtifact(edit, dictionary=dictionary, embed_dictionary=True).save_pretrained(
        tmp_path / "whole"
    )
    loaded = EditArtifact.from_pretrained(tmp_path / "whole")
    assert loaded.dictionary is not None
    assert loaded.dictionary.digest() == dictionary.digest()
    assert torch.equal(loaded.dictionary.atoms, dictionary.atoms)
    assert dict(loaded.dictionary.meta) == {"seed": 0}


@pytest.mark.parametrize(
    ("learner", "more"),
    [
        ("batch_topk", {"k": 3}), ("matryoshka", {"k": 3, "groups": (0.25, 0.25)}), ("gated", {}),
        ("poly", {"k": 3}), ("vl", {"k": 3}), ("gba", {}),
    ],
)  # fmt: skip
def test_a_dictionary_of_any_learner_travels_whole(
    learner: str,
    more: dict[str, Any],
    digits_resnet: nn.Module,
    digits_test: digits.Split,
    tmp_path: Path,
) -> None:
    hooked = salve.attach(digits_resnet)
    few = digits.Split(digits_test.images[:80], digits_test.labels[:80])
    acts = salve.record(hooked, few.batches(), progress=False)
    dictionary = salve.fit(acts, learner, n_latents=16, steps=5, learning_rate=0.01, **more)
    edit = salve.suppress(hooked, dictionary, latent=1, strength=1.0)
    EditArtifact(edit, dictionary=dictionary, embed_dictionary=True).save_pretrained(tmp_path)
    loaded = EditArtifact.from_pretrained(tmp_path).dictionary
    assert loaded is not None
    assert loaded.digest() == dictionary.digest()
    assert loaded.options == dictionary.options
    assert dict(loaded.meta) == dict(dictionary.meta)
    assert torch.equal(loaded.encode(acts.tensor()), dictionary.encode(acts.tensor()))


def test_inspect_reads_no_tensors_and_reports_the_card(
    tiny: EditArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_pretrained(tmp_path)

    def no_tensors(data: bytes) -> dict[str, Tensor]:
        raise AssertionError("tensors were opened")

    monkeypatch.setattr("salve_plugin.share.reading.decode_tensors", no_tensors)
    said = EditArtifact.inspect(tmp_path)
    assert said["digest"] == tiny.digest
    assert said["card"] == "as written"
    sizes = [len(data) for name, data in contents(tmp_path).items() if name != "README.md"]
    assert said["bytes"] == sum(sizes)
    (tmp_path / "README.md").write_text("Mine.")
    assert EditArtifact.inspect(tmp_path)["card"] == "edited"
    (tmp_path / "README.md").unlink()
    assert EditArtifact.inspect(tmp_path)["card"] == "missing"
    json.dumps(said, allow_nan=False)


def test_verify_returns_the_digest_or_raises(tiny: EditArtifact, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    assert EditArtifact.verify(tmp_path) == tiny.digest
    (tmp_path / "picture_heat_map.png").unlink()
    with pytest.raises(ArtifactError, match="picture_heat_map"):
        EditArtifact.verify(tmp_path)


@pytest.mark.parametrize("source", ["no-church", "./no-church", "/a/b", "a/b/c", Path("a/b")])
def test_what_is_no_folder_and_no_repository_is_refused(source: str | Path) -> None:
    with pytest.raises(ArtifactError, match=r"no folder .* 'user/name'"):
        EditArtifact.from_pretrained(source)


def test_a_local_folder_has_no_revision(tiny: EditArtifact, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "a" / "b")
    assert EditArtifact.verify(tmp_path / "a", subfolder="b") == tiny.digest
    for where in ({"revision": "main"}, {"force_download": True}):
        with pytest.raises(InputError, match="local folder, which has no revisions"):
            EditArtifact.from_pretrained(tmp_path / "a" / "b", **where)
    with pytest.raises(InputError, match="not a path inside"):
        EditArtifact.from_pretrained(tmp_path / "a", subfolder="../a/b")
    with pytest.raises(ArtifactError, match="check the subfolder"):
        EditArtifact.from_pretrained(tmp_path / "a", subfolder="c")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"pictures": {"../evil": b"\x89PNG\r\n\x1a\n"}}, "not a plain name"),
        ({"pictures": {"a": b"GIF89a"}}, "not a PNG"),
        ({"evaluation": {"before": {"a": 1.0}, "after": {}}}, "same measures"),
        ({"evaluation": {"before": {"a": 1.0}}}, "same measures"),
        ({"pristine": {"fc.bias": WEIGHT[1:]}}, "the edit touches"),
        ({"pristine": {"fc.weight": WEIGHT}}, "needs"),
        ({"pristine": {"fc.weight": WEIGHT[1:].double()}}, "needs"),
        ({"pristine": {"fc.weight": WEIGHT[1:] * torch.nan}}, "NaN"),
        ({"embed_dictionary": True}, "needs the dictionary"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tiny: EditArtifact, parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        changed(tiny, **parts)


def test_whole_pristine_weights_must_be_the_base(tiny_edit: Edit) -> None:
    edit = replace(tiny_edit, rows=None)
    EditArtifact(edit, pristine={"fc.weight": WEIGHT})
    with pytest.raises(InputError, match="not the weight"):
        EditArtifact(edit, pristine={"fc.weight": WEIGHT + 1})


def test_another_dictionary_than_the_edits_is_refused(
    tiny: EditArtifact, digits_resnet: nn.Module
) -> None:
    with pytest.raises(InputError, match="not the edit's"):
        changed(tiny, dictionary=random_dictionary(salve.attach(digits_resnet)))


@pytest.mark.parametrize(
    "parts",
    [
        {"evaluation": {"before": {"a": float("nan")}, "after": {"a": 1.0}}},
        {"data": {"a": float("inf")}},
        {"data": {"a": ["nested"]}},
        {"data": {"": 1}},
        {"data": {"a": "\ud800"}},
        {"data": {"a": "x" * 10_001}},
        {"labels": ["x" * 1001]},
    ],
)
def test_what_could_not_be_read_back_is_not_written(
    tiny: EditArtifact, parts: dict[str, Any], tmp_path: Path
) -> None:
    object.__setattr__(tiny, *next(iter(parts.items())))
    with pytest.raises(InputError):
        tiny.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


# --- saving over an older artifact ---------------------------------------------------------------


def test_an_older_artifact_is_replaced_and_other_files_stay(
    tiny: EditArtifact, tiny_edit: Edit, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").write_bytes(b"not ours")
    (tmp_path / "old" / "picture_mine.png").write_bytes(b"not ours either")
    new = EditArtifact(replace(tiny_edit, strength=0.5))
    new.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "fresh")
    assert contents(tmp_path / "old") == {
        **contents(tmp_path / "fresh"),
        "model.safetensors": b"not ours",
        "picture_mine.png": b"not ours either",
    }


def test_a_picture_that_somebody_changed_is_not_removed(tiny: EditArtifact, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    (tmp_path / "picture_heat_map.png").write_bytes(b"retouched")
    changed(tiny, pictures=None).save_pretrained(tmp_path)
    assert (tmp_path / "picture_heat_map.png").read_bytes() == b"retouched"


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_an_error_in_the_middle_leaves_the_old_artifact_whole(
    tiny: EditArtifact, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_pretrained(tmp_path)
    before = contents(tmp_path)
    real, calls = os.replace, []

    def full(source: object, target: object) -> None:
        if Path(str(target)).parent == tmp_path:
            calls.append(target)
            if len(calls) == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
        real(str(source), str(target))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(WriteError, match="No space left"):
        changed(tiny, labels=None).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert EditArtifact.verify(tmp_path) == tiny.digest


SAVE_FOREVER = """
import sys
from dataclasses import replace
from salve_plugin.share.artifact import EditArtifact
one = EditArtifact.from_pretrained(sys.argv[1])
other = replace(one, data={"name": "other"}, pictures=None)
print("ready", flush=True)
while True:
    for artifact in (other, one):
        artifact.save_pretrained(sys.argv[1])
"""


DIE_AT_THE_THIRD_RENAME = """
import os, sys
from dataclasses import replace
from pathlib import Path
from salve_plugin.share.artifact import EditArtifact
old = EditArtifact.from_pretrained(sys.argv[1])
real, count = os.replace, 0
def rename(source, target):
    global count
    if Path(target).parent == Path(sys.argv[1]):
        count += 1
        if count == 3:
            os._exit(9)
    real(source, target)
os.replace = rename
replace(old, alpha_crit=None).save_pretrained(sys.argv[1])
"""


def test_a_crash_between_two_renames_leaves_a_folder_that_is_refused_and_can_be_saved_again(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    before = contents(tmp_path)
    command = [sys.executable, "-c", DIE_AT_THE_THIRD_RENAME, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == 9
    assert (tmp_path / "edit.safetensors").read_bytes() != before["edit.safetensors"]
    with pytest.raises(ArtifactError, match=r"edit\.safetensors has"):
        EditArtifact.verify(tmp_path)
    tiny.save_pretrained(tmp_path)
    assert EditArtifact.verify(tmp_path) == tiny.digest


@pytest.mark.slow
def test_a_killed_save_leaves_an_artifact_that_is_whole_or_refused(
    tiny: EditArtifact, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    allowed = {tiny.digest, changed(tiny, data={"name": "other"}).digest}
    for wait in (0.0, 0.013, 0.031):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with suppress(ArtifactError):
            assert EditArtifact.verify(tmp_path) in allowed
        tiny.save_pretrained(tmp_path)
        assert EditArtifact.verify(tmp_path) == tiny.digest


SEAL = "manifest_sha256"


# --- what is refused -----------------------------------------------------------------------------


def reseal(config: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest whose seal is right, whatever else is wrong with it."""
    from salve_plugin.share.manifest import write_manifest

    return write_manifest({key: value for key, value in config.items() if key != SEAL})


@pytest.fixture
def saved(tiny: EditArtifact, tmp_path: Path) -> Path:
    return tiny.save_pretrained(tmp_path / "saved")


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
        (set_in("format_version", "2.0"), "upgrade"),
        (set_in("format_version", "0.9"), "never was released"),
        (set_in("format_version", 1.0), "expected for example"),
        (set_in("requires", ["scale", "teleport"]), r"requires \['teleport'\]"),
        (set_in("edit", "operator", "exec"), "one of"),
        (set_in("edit", "latent", 4), "the artifact is"),
        (set_in("digest", "0" * 64), "the artifact is"),
        (set_in("files", "extra.pkl", {"sha256": "0" * 64, "size": 3}), "name of a field"),
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


def forged(saved: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Rewrite the artifact with every digest right, as an attacker would."""
    import safetensors.torch

    from salve_plugin.share.manifest import identity

    config = json.loads((saved / "edit_config.json").read_text())
    tensors = safetensors.torch.load((saved / "edit.safetensors").read_bytes())
    change(config, tensors)
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    (saved / "edit.safetensors").write_bytes(data)
    config["files"]["edit.safetensors"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    config["digest"] = identity(config, tensors)
    (saved / "edit_config.json").write_bytes(reseal(config))


def put(name: str, tensor: Tensor) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        names = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
        tensors[name] = tensor
        config["tensors"][name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape)}

    return change


def drop(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        del tensors[name]
        del config["tensors"][name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("direction", torch.tensor([1.0, 1, 0, 0])), "norm"),
        (put("direction", torch.tensor([torch.nan, 1, 0, 0])), "norm"),
        (put("direction", torch.tensor([1, 0, 0, 0])), "floating"),
        (put("direction", torch.eye(1, 5)[0]), "width 4"),
        (put("direction", torch.eye(4)), "vector"),
        (put("pristine.fc.weight", WEIGHT), "needs"),
        (put("pristine.fc.weight", WEIGHT[1:] / 0), "infinite"),
        (put("pristine.other", WEIGHT[1:]), "touches"),
        (put("dictionary.atoms", torch.eye(4)), "not embedded"),
        (put("alpha_crit.values", torch.full((4,), torch.nan).double()), "NaN"),
        (put("alpha_crit.values", torch.full((4,), -1.0).double()), "negative"),
        (put("alpha_crit.values", torch.ones(4)), "expected torch.float64"),
        (put("alpha_crit.values", torch.ones(3).double()), r"shape \[3\]"),
        (put("alpha_crit.values", torch.ones(4).double()), r"\['alpha_crit'\] do not follow"),
        (put("alpha_crit.more", torch.ones(4).double()), "critical strengths are"),
        (drop("alpha_crit.values"), "critical strengths are"),
        (drop("pristine.fc.weight"), r"\['requires'\] do not follow"),
        (lambda config, _: config.update(alpha_crit=None), "have no summary"),
        (lambda config, _: config.update(requires=["scale"]), r"\['requires'\] do not follow"),
        (lambda config, _: config["edit"].update(rows=[2, 1]), "do not follow"),
        (lambda config, _: config["edit"].update(rows=[1, 7]), "from 0 to 2"),
        (lambda config, _: config["edit"].update(strength=2), "do not follow"),
        (lambda config, _: config["evaluation"]["after"].update(more=1), "measures after"),
    ],
)
def test_a_forgery_with_every_digest_right_is_refused_for_its_content(
    saved: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None], message: str
) -> None:
    forged(saved, change)
    with pytest.raises(ArtifactError, match=message):
        EditArtifact.from_pretrained(saved)


def test_a_forgery_that_changes_nothing_is_accepted(saved: Path, tiny: EditArtifact) -> None:
    forged(saved, lambda *_: None)
    assert EditArtifact.verify(saved) == tiny.digest


def test_links_pickles_missing_and_swapped_files_are_refused(
    saved: Path, tiny_edit: Edit, tmp_path: Path
) -> None:
    file = saved / "edit.safetensors"
    data = file.read_bytes()
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="cannot read"):
        EditArtifact.from_pretrained(saved)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link"):
        EditArtifact.from_pretrained(saved)
    file.unlink()
    torch.save({"direction": torch.ones(4)}, file)
    with pytest.raises(ArtifactError):
        EditArtifact.from_pretrained(saved)
    other = EditArtifact(replace(tiny_edit, strength=0.5)).save_pretrained(tmp_path / "other")
    file.write_bytes((other / "edit.safetensors").read_bytes())
    with pytest.raises(ArtifactError):
        EditArtifact.from_pretrained(saved)
    file.write_bytes(data)
    EditArtifact.from_pretrained(saved)


def test_files_over_the_limits_are_refused_before_they_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (saved / "edit_config.json").open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(ArtifactError, match="more than"):
        EditArtifact.from_pretrained(saved)


def test_an_unlisted_file_beside_the_artifact_is_never_touched(saved: Path) -> None:
    (saved / "pytorch_model.bin").write_bytes(b"\x80\x04evil")
    (saved / "setup.py").write_text("raise SystemExit")
    EditArtifact.from_pretrained(saved)


# --- every bit -----------------------------------------------------------------------------------


def reader_of(files: dict[str, bytes]) -> Callable[[str, int], bytes]:
    return lambda name, _: files[name]


def in_memory(files: dict[str, bytes]) -> str:
    """Verify an artifact that lies in memory; return its digest."""
    from salve_plugin.share.reading import read_artifact

    config, _ = read_artifact(reader_of(files))
    return str(config["digest"])


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def covered(folder: Path) -> dict[str, bytes]:
    files = contents(folder)
    del files["README.md"]
    return files


def assert_detected(files: dict[str, bytes], name: str, bits: range) -> None:
    for bit in bits:
        try:
            in_memory({**files, name: flipped(files[name], bit)})
        except ArtifactError:
            continue
        raise AssertionError(f"bit {bit} of {name} was flipped and nobody noticed")


def test_a_flipped_bit_in_any_byte_of_any_file_is_detected(saved: Path) -> None:
    from salve_plugin.share.manifest import read_files, read_manifest

    files = covered(saved)
    assert len(files) == 3
    in_memory(files)
    manifest = files.pop("edit_config.json")
    # A stride that is prime to 8: every byte at least once, every bit position as often.
    for bit in range(0, 8 * len(manifest), 7):
        with pytest.raises(ArtifactError):
            read_manifest(flipped(manifest, bit))
    config: Any = read_manifest(manifest)
    for name, data in files.items():
        for bit in range(0, 8 * len(data), 7):
            damaged = {**files, name: flipped(data, bit)}
            with pytest.raises(ArtifactError, match="was changed"):
                read_files(reader_of(damaged), config["files"])


@pytest.mark.slow
def test_every_flipped_bit_of_every_file_is_detected(saved: Path) -> None:
    files = covered(saved)
    for name, data in files.items():
        assert_detected(files, name, range(8 * len(data)))


def test_truncation_at_every_fifth_length_and_added_bytes_are_detected(saved: Path) -> None:
    files = covered(saved)
    for name, data in files.items():
        shorter = (data[:length] for length in range(0, len(data), 5))
        for damaged in (*shorter, data[:-1], data + b"\0", data + b"\n", data * 2):
            with pytest.raises(ArtifactError):
                in_memory({**files, name: damaged})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**60) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            found += places(item, (*path, index))
    return found


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_manifest_with_any_value_replaced_and_sealed_anew_raises_only_our_errors(
    data: st.DataObject, shared_files: dict[str, bytes]
) -> None:
    """What an attacker can do who knows the format: every digest that he controls is right."""
    from salve_plugin.share.manifest import identity
    from salve_plugin.share.tensor_file import decode_tensors

    config = json.loads(shared_files["edit_config.json"])
    place = data.draw(st.sampled_from(places(config)))
    target: Any = config
    for key in place[:-1]:
        target = target[key]
    before = target[place[-1]]
    target[place[-1]] = data.draw(json_values)
    if target[place[-1]] == before:
        return
    try:
        config["digest"] = identity(config, decode_tensors(shared_files["edit.safetensors"]))
        manifest = reseal(config)
    except ValueError:  # not even JSON: NaN and the like, as a careless program writes it
        manifest = json.dumps(config).encode(errors="surrogatepass")
    try:
        in_memory({**shared_files, "edit_config.json": manifest})
    except SalveError:
        return
    # What passes differs in a field that is free: a name, a number in a table.
    assert place[0] in ("base", "data", "dictionary", "edit", "evaluation", "labels", "producer",
                        "format_version", "alpha_crit", "digest", SEAL)  # fmt: skip


@settings(deadline=None, max_examples=150, derandomize=True)
@given(data=st.data())
def test_a_file_with_random_bytes_exchanged_is_refused(
    data: st.DataObject, shared_files: dict[str, bytes]
) -> None:
    name = data.draw(st.sampled_from(sorted(shared_files)))
    whole = shared_files[name]
    start = data.draw(st.integers(0, len(whole)))
    stop = start + data.draw(st.integers(0, 20))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[stop:]
    if damaged == whole:
        return
    with pytest.raises(ArtifactError):
        in_memory({**shared_files, name: damaged})


@pytest.fixture(scope="module")
def shared_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one small artifact, read-only."""
    edit = Edit(
        site=salve.Site("unembed.hook_in", "fc", "in", "pooled", 4, readers=("fc",)),
        operator="scale",
        mode="suppress",
        latent=5,
        direction=torch.tensor([0.6, 0.0, -0.8, 0.0]),
        strength=1.5,
        rows=(1, 2),
        base=Base({"architecture": "Tiny"}, {"fc.weight": Fingerprint.of(WEIGHT)}),
        dictionary_digest="ab" * 32,
    )
    artifact = EditArtifact(
        edit,
        pristine={"fc.weight": WEIGHT[1:]},
        evaluation={"before": {"a": 1.0}, "after": {"a": 0.0}},
        labels=("x", "y", "z"),
    )
    return covered(artifact.save_pretrained(tmp_path_factory.mktemp("artifact")))
