"""An artifact as its user meets it: saved, loaded, applied, reverted, described."""

import hashlib
import json
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import (
    WEIGHT,
    altered,
    contents,
    random_dictionary,
    small_model,
    state_bytes,
    with_edit,
)
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.application import forget_
from salve_plugin.control.edit import Edit
from salve_plugin.demo import digits
from salve_plugin.errors import ArtifactError, BaseMismatchError, EditStateError, InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle


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
    model = small_model()
    before = state_bytes(model)
    with pytest.raises(EditStateError):
        tiny.revert_(model)
    with pytest.raises(EditStateError, match="no pristine rows"):
        replace(tiny, pristine=None).revert_(model)
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
    empty = {field.name for field in fields(EditArtifact)} - {"edit", "embed_dictionary", "data"}
    assert {name: getattr(loaded, name) for name in empty} == dict.fromkeys(empty)


def test_nothing_else_than_the_listed_fields_enters_the_identity(
    tiny: EditArtifact, tiny_edit: Edit, png: bytes
) -> None:
    assert tiny.assessment is not None
    # What is predicted is of latents, so that with it the edit of another one is refused.
    unpredicted = replace(tiny, assessment=replace(tiny.assessment, predictions=()))
    variants = [
        tiny,
        unpredicted,
        with_edit(tiny, altered(tiny_edit, strength=1.0)),
        with_edit(unpredicted, altered(tiny_edit, latent=6)),
        with_edit(tiny, altered(tiny_edit, mode="enhance")),
        with_edit(tiny, altered(tiny_edit, direction=-tiny_edit.gate.directions[0])),
        replace(tiny, pristine=None),
        replace(tiny, labels=None),
        replace(tiny, data=None),
        replace(tiny, evaluation=None),
        replace(tiny, alpha_crit=None),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)
    assert replace(tiny, pictures=None).digest == tiny.digest
    assert replace(tiny, pictures={"other": png}).digest == tiny.digest


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
    tiny.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "edit_config.json").read_text())
    jsonschema.Draft202012Validator(EditArtifact.format.schema()).validate(config)


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
    assert loaded.dictionary.digest == dictionary.digest
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
    assert loaded.digest == dictionary.digest
    assert loaded.options == dictionary.options
    assert dict(loaded.meta) == dict(dictionary.meta)
    assert torch.equal(loaded.encode(acts.tensor()), dictionary.encode(acts.tensor()))


def test_inspect_reads_no_tensors_and_reports_the_card(
    tiny: EditArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_pretrained(tmp_path)

    def no_tensors(data: bytes) -> dict[str, Tensor]:
        raise AssertionError("tensors were opened")

    monkeypatch.setattr("salve_plugin.share.artifact.decode_tensors", no_tensors)
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


def test_a_local_file_is_never_asked_for_on_the_hub(
    tiny: EditArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained("a")
    with pytest.raises(ArtifactError, match="no folder"):
        EditArtifact.from_pretrained("a/edit_config.json")


def test_an_argument_that_there_is_not_is_refused_and_never_passed_over(saved: Path) -> None:
    with pytest.raises(InputError, match="no argument 'subfoldr'"):
        EditArtifact.from_pretrained(saved, subfoldr="b")  # type: ignore[call-arg] # misspelt


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
        replace(tiny, **parts)


def test_whole_pristine_weights_must_be_the_base(tiny_edit: Edit) -> None:
    edit = replace(tiny_edit, rows=None)
    EditArtifact(edit, pristine={"fc.weight": WEIGHT})
    with pytest.raises(InputError, match="not the weight"):
        EditArtifact(edit, pristine={"fc.weight": WEIGHT + 1})


def test_another_dictionary_than_the_edits_is_refused(
    tiny: EditArtifact, digits_resnet: nn.Module
) -> None:
    with pytest.raises(InputError, match="not the edit's"):
        replace(tiny, dictionary=random_dictionary(salve.attach(digits_resnet)))


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


def test_the_pristine_rows_stay_so_while_the_model_changes(tiny_edit: Edit, tmp_path: Path) -> None:
    model = small_model()
    rows = model.get_parameter("fc.weight").detach()[1:]  # the model's own memory
    artifact = EditArtifact(tiny_edit, pristine={"fc.weight": rows})
    tiny_edit.apply_(model)
    artifact.save_pretrained(tmp_path)
    edited = deepcopy(model)
    forget_(edited)
    EditArtifact.from_pretrained(tmp_path).revert_(edited)
    assert torch.equal(edited.get_parameter("fc.weight"), WEIGHT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", True])
def test_measures_are_finite_numbers(tiny_edit: Edit, value: Any) -> None:
    measures: Any = {"before": {"accuracy": 0.5}, "after": {"accuracy": value}}
    with pytest.raises(InputError, match="number"):
        EditArtifact(tiny_edit, evaluation=measures)


def test_a_text_is_no_list_of_labels(tiny_edit: Edit) -> None:
    with pytest.raises(InputError, match="a list of names"):
        EditArtifact(tiny_edit, labels="abc")


@pytest.mark.usefixtures("untyped")
def test_parts_of_another_kind_are_refused_in_words(tiny_edit: Edit, tiny: EditArtifact) -> None:
    kind: Any = EditArtifact
    searched = salve.SearchedCrit(
        torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long(), "flip", 0.5, "label",
        tiny_edit.family, 1.0, 0.1, 0.01,
    )  # fmt: skip
    wrong: list[dict[str, Any]] = [
        {"alpha_crit": searched}, {"assessment": "x"}, {"dictionary": "x"}, {"labels": [1, 2, 3]},
        {"pictures": {"map": "map.png"}}, {"pictures": {1: b""}}, {"pictures": ["map.png"]},
        {"labels": 3}, {"labels": np.array(["a", "b", "c"])}, {"data": [1]},
        {"evaluation": []}, {"evaluation": {"before": 3, "after": 3}}, {"pristine": 3},
        {"pristine": {"fc.weight": WEIGHT[1:].numpy()}}, {"dictionary_at": "me/dictionary"},
        {"pristine": {"fc.weight": WEIGHT[1:].to_sparse()}}, {"dictionary_learner": 3},
    ]  # fmt: skip
    for parts in wrong:
        with pytest.raises(InputError):
            kind(tiny_edit, **parts)
    with pytest.raises(InputError, match="expected Edit"):
        kind("x")
    with pytest.raises(InputError, match="an edit was expected"):
        kind.of(small_model(), "x")
    members: list[Any] = [[tiny], tiny, {"one": "x"}, {1: tiny}]
    for each in members:
        with pytest.raises(InputError):
            EditBundle.of(small_model(), each)
    bundle: Any = EditBundle.of(small_model(), {"one": tiny})
    for part in ("evaluation", "data", "composition"):
        with pytest.raises(InputError, match=f"{part} is 3"):
            replace(bundle, **{part: 3})
    with pytest.raises(InputError, match="no artifact"):
        salve.save_edited_model(small_model(), "x", "edited")  # type: ignore[arg-type] # as it says
