"""An audit proves one sentence, or names the tensors that stand against it."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from audited_models import WRONG, State, head_edit, hidden_edit, network, state
from edited_models import artifact_of, loaded, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import random_edits, small
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin import EditArtifact, EditBundle
from salve_plugin.control.edit import Edit
from salve_plugin.control.saved import pristine_rows
from salve_plugin.errors import InputError, ReadError, UnsupportedModelError
from salve_plugin.share.audit import audit
from salve_plugin.store.digest import sha256_tensor, state_digest


@pytest.mark.parametrize(("kind", "make"), [("resnet", head_edit), ("vit", hidden_edit)])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_right_model_is_proven(
    kind: str, make: Callable[[nn.Module], Edit], with_base: bool
) -> None:
    model = network(kind)
    edit = make(model)
    rows, base = pristine_rows(model, edit), state(model)
    result = audit([edit], rows, model if with_base else None, edit.edited(model))
    assert result
    assert "with exactly edit" in result.sentence
    assert result.base_digest == edit.base.state
    changed = {row.name for row in result.tensors if row.verdict == "changed as the edit says"}
    assert changed == set(edit.base.tensors)
    if with_base:
        assert {row.name for row in result.tensors} == set(base)
        edit.apply_(model)  # the base may have the edit on it: its pristine state counts
        assert audit([edit], None, model, model)


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("with_base", [True, False])
def test_whatever_else_was_changed_is_found(kind: str, with_base: bool) -> None:
    change, message = WRONG[kind]
    model = network("resnet")
    edit = head_edit(model, [1, 3])
    rows, edited = pristine_rows(model, edit), state(edit.edited(model))
    change(edited)
    result = audit([edit], rows, model if with_base else None, edited)
    assert not result
    if with_base:
        assert re.search(message, result.sentence), result.sentence
        assert sum(row.verdict not in ("identical", "changed as the edit says")
                   for row in result.tensors) == 1  # fmt: skip


def test_a_half_precision_copy_is_proven_as_such() -> None:
    model = network("resnet")
    edit = head_edit(model)
    result = audit([edit], None, model, edit.edited(model).half())
    assert result
    assert (result.dtype, "a float16 copy of the base" in result.sentence) == ("float16", True)
    other = edit.edited(model).half()
    with torch.no_grad():
        other.get_parameter("conv1.weight")[0, 0, 0, 0] += 1
    assert not audit([edit], None, model, other)


def test_a_copy_of_which_some_tensors_are_cast_is_not_called_a_copy_in_that_precision() -> None:
    model = network("resnet")
    edit = head_edit(model)
    some = state(edit.edited(model))
    some["conv1.weight"] = some["conv1.weight"].half()
    result = audit([edit], None, model, some)
    floats = sum(tensor.is_floating_point() for tensor in some.values())
    assert result
    assert f"a copy, with 1 of {floats} tensors in float16, of the base" in result.sentence
    assert "1 of them rounded to float16" in result.sentence


def test_the_wrong_artifact_the_unedited_model_and_a_second_edit_are_named() -> None:
    model, other = network("resnet"), network("resnet")
    edit, more = head_edit(model), head_edit(model, [1])
    with torch.no_grad():
        other.get_parameter("fc.weight")[0, 0] += 1
    assert "made for another base" in audit([head_edit(other)], None, model, model).sentence
    assert "the edit is not in it" in audit([edit], None, model, model).sentence
    both = edit.edited(model)
    more.apply_(both)
    assert not audit([edit], None, model, both)
    assert audit([edit, more], None, model, both)


def test_a_base_that_differs_where_no_edit_writes_is_not_the_edits_base() -> None:
    model, other = network("resnet"), network("resnet")
    edit = head_edit(model)
    with torch.no_grad():
        other.get_parameter("conv1.weight")[0] += 1
    result = audit([edit], None, other, edit.edited(other))
    assert not result
    assert "differs from the one that was edited" in result.sentence


def test_stacks_of_every_form_and_tied_weights_are_proven() -> None:
    hooked = small()
    edits = list(dict.fromkeys(random_edits(hooked, random.Random(2), 6)))
    edited = small()
    for edit in edits:
        edit.apply_(edited)
    result = audit(edits, None, hooked, edited)
    assert result, result.sentence
    with torch.no_grad():
        edited.model.get_parameter("norm.weight")[0] += 1
    assert not audit(edits, None, hooked, edited)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_are_read_by_their_tensors(tmp_path: Path, suffix: str) -> None:
    model = network("vit")
    edit = hidden_edit(model)
    paths = [tmp_path / f"{name}.{suffix}" for name in ("base", "edited")]
    for path, source in zip(paths, (model, edit.edited(model)), strict=True):
        if suffix == "pt":
            torch.save({"state_dict": source.state_dict()}, path)
        else:
            safetensors.torch.save_file(state(source), path, metadata={"made": path.name})
    assert audit([edit], None, *paths)
    paths[1].write_bytes(b"nothing")
    with pytest.raises(ReadError, match="cannot read the weights"):
        audit([edit], None, *paths)


def test_without_base_and_pristine_rows_nothing_can_be_said() -> None:
    model = network("resnet")
    edit = head_edit(model)
    no_rows: dict[str, Tensor] = {}
    for pristine in (None, no_rows):
        with pytest.raises(InputError, match="needs the pristine rows"):
            audit([edit], pristine, None, model)
    with pytest.raises(InputError, match="holds no tensors"):
        audit([edit], None, {}, model)


def flipped(tensor: Tensor, bit: int) -> Tensor:
    """Return a copy with one bit of its memory changed."""
    copy = tensor.clone()
    copy.reshape(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return copy


@cache
def case(kind: str) -> tuple[EditArtifact, State, State]:
    model = network(kind)
    edit = head_edit(model, [1, 3]) if kind == "resnet" else hidden_edit(model)
    return EditArtifact.of(model, edit), state(model), state(edit.edited(model))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["resnet", "vit"]), st.booleans(), st.data())
def test_any_flipped_bit_of_any_tensor_is_found(
    kind: str, with_base: bool, data: st.DataObject
) -> None:
    artifact, base, edited = case(kind)
    name = data.draw(st.sampled_from(sorted(edited)), "tensor")
    bit = data.draw(st.integers(0, 8 * edited[name].nbytes - 1), "bit")
    damaged = {**edited, name: flipped(edited[name], bit)}
    assert artifact.audit(base if with_base else None, edited)
    result = artifact.audit(base if with_base else None, damaged)
    assert not result
    if with_base:
        (wrong,) = [tensor for tensor in result.tensors if not tensor.is_right]
        assert (wrong.name, wrong.verdict) == (name, "changed otherwise")
        assert wrong.note


def test_digests_are_those_of_the_tensors_alone_and_of_all() -> None:
    artifact, base, edited = case("resnet")
    for result in (artifact.audit(base, edited), artifact.audit(None, edited)):
        rows = {tensor.name: (tensor.before, tensor.after) for tensor in result.tensors}
        assert rows == {name: (sha256_tensor(base[name]), sha256_tensor(edited[name]))
                        for name in base}  # fmt: skip
        assert (result.base_digest, result.edited_digest) == (
            state_digest(base),
            state_digest(edited),
        )
        assert result.edits == (artifact.edit.digest,)
        assert result.to_json()["proven"] is True


@pytest.mark.parametrize("path", ["norm0", "scale"])
def test_hidden_edits_behind_normalization_and_layer_scale_are_proven(path: str) -> None:
    hooked = small()
    site = next(site for site in hooked.sites.values() if path in site.affine)
    edit = hidden_edit_of(hooked, site)
    assert len(edit.base.tensors) == 2, "the weight and the bias that takes the offset"
    artifact, edited = EditArtifact.of(hooked, edit), edit.edited(hooked)
    assert artifact.audit(hooked, edited)
    assert artifact.audit(None, edited)
    for name in (*edit.base.tensors, f"{path}.weight" if path == "norm0" else f"{path}.gamma"):
        other = edit.edited(hooked)
        with torch.no_grad():
            other.model.get_parameter(name).view(-1)[0] += 1
        assert not artifact.audit(hooked, other), name
        assert not artifact.audit(None, other), name


def hidden_edit_of(hooked: salve.HookedModel, site: salve.Site) -> Edit:
    direction = torch.eye(site.width)[:, :1]
    change = salve.LowRankMap(direction, direction, torch.ones(1))
    return salve.edit_at(hooked, site, change, role="writer")


def test_a_bundle_is_proven_as_a_whole() -> None:
    model = network("resnet")
    edits = {"one": head_edit(model, [1, 3]), "two": head_edit(model, [3, 5], 1.0)}
    members = {name: EditArtifact.of(model, edit) for name, edit in edits.items()}
    bundle = EditBundle.of(model, members)
    base, only_one = state(model), state(edits["one"].edited(model))
    bundle.apply_(model)
    for first in (base, None):
        assert bundle.audit(first, model)
        assert not bundle.audit(first, only_one)
        assert not members["one"].audit(first, model)
    with pytest.raises(InputError, match="needs the pristine rows"):
        EditBundle(
            {name: EditArtifact(edit) for name, edit in edits.items()}, bundle.composition
        ).audit(None, model)


def test_timm_loads_what_status_recognizes_and_an_audit_proves(
    digits_resnet: nn.Module, tmp_path: Path
) -> None:
    model = trained("salve_digits_resnet", digits_resnet)
    artifact = artifact_of(model, rows=(1, 3))
    salve.save_edited_model(model, artifact, tmp_path)
    copy = loaded(f"local-dir:{tmp_path}")
    (saved,) = salve.status(copy, artifacts=[artifact, artifact_of(model, (2,))]).saved
    assert saved.edit == artifact.edit
    assert artifact.audit(model, copy)
    assert artifact.audit(None, tmp_path), "a folder is read by its model.safetensors"
    assert not artifact.audit(model, model)


def tied_case() -> tuple[salve.HookedModel, EditArtifact]:
    """Return a network whose head has a twin of the same weight, and an edit of that."""
    hooked = small()
    edit = salve.edit_at(hooked, "sum", salve.Gate(torch.eye(6)[:1], 0.5))
    return hooked, EditArtifact.of(hooked, edit)


def test_tied_weights_are_one_where_memory_says_so() -> None:
    hooked, artifact = tied_case()
    edited, base = artifact.edit.edited(hooked), state(hooked.model)
    for first in (hooked, base, None):
        assert artifact.audit(first, edited), "a model knows its ties"
    artifact.edit.apply_(hooked)
    assert artifact.audit(hooked, edited), "without the edit that is on it, too"
    result = artifact.audit(base, state(edited.model))
    assert not result
    assert "if they are one tied weight, compare models" in result.sentence
    half = state(edited.model) | {"twin.weight": base["twin.weight"]}
    artifact.edit.revert_(hooked)
    assert not artifact.audit(hooked, half), "half of a tied weight"


def test_edits_of_one_tied_weight_by_two_names_are_refused() -> None:
    hooked, artifact = tied_case()
    edit = artifact.edit
    (target,), (print_,) = edit.targets, edit.base.tensors.values()
    other = replace(  # as made for a copy whose weights are not tied
        edit,
        site=replace(edit.site, readers=("twin",)),
        targets=(replace(target, weight="twin.weight"),),
        base=replace(edit.base, tensors={"twin.weight": print_}),
    )
    edited = edit.edited(hooked)
    for first, second in ((hooked, edited), (hooked, state(edited.model)), (None, edited)):
        with pytest.raises(UnsupportedModelError, match=r"one tied weight under several names"):
            audit([artifact.edit, other], artifact.pristine, first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_copies_in_another_precision_keep_what_is_no_float(dtype: torch.dtype) -> None:
    artifact, base, edited = case("resnet")
    copy = {name: t.to(dtype) if t.is_floating_point() else t for name, t in edited.items()}
    assert any(not tensor.is_floating_point() for tensor in copy.values())
    result = artifact.audit(base, copy)
    assert result
    assert result.dtype == str(dtype).removeprefix("torch.")
    assert ("hides smaller differences" in result.sentence) == (dtype != torch.float64)
    part = copy | {"bn1.weight": edited["bn1.weight"]}  # as mixed precision leaves it
    assert artifact.audit(base, part)
    assert not artifact.audit(base, copy | {"fc.bias": copy["fc.bias"] + 1})
    assert not artifact.audit(base, copy | {"bn1.num_batches_tracked": torch.tensor(-1)})
    assert not artifact.audit(None, copy), "the digest is of the base's own precision"


def test_a_cast_to_integers_is_no_copy() -> None:
    artifact, base, edited = case("resnet")
    whole = {name: tensor.to(torch.int8) for name, tensor in edited.items()}
    assert not artifact.audit(base, whole)
    assert not artifact.audit(base, edited | {"bn1.weight": edited["bn1.weight"].to(torch.int32)})
    two = edited | {
        "bn1.weight": edited["bn1.weight"].half(),
        "bn1.bias": edited["bn1.bias"].bfloat16(),
    }
    assert not artifact.audit(base, two)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_a_prefix_of_all_names_is_left_out(prefix: str) -> None:
    artifact, base, edited = case("resnet")
    longer = {f"{prefix}{name}": tensor for name, tensor in edited.items()}
    for first in (base, {f"x.{name}": tensor for name, tensor in base.items()}, None):
        assert artifact.audit(first, longer)
    result = artifact.audit(base, longer | {"loss.weight": torch.ones(1)})
    assert not result
    assert "missing" in result.sentence
    assert len(result.sentence) < 500


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_of_training_scripts_are_read(key: str, tmp_path: Path) -> None:
    artifact, base, edited = case("resnet")
    torch.save({key: edited, "epoch": 3}, tmp_path / "last.pth")
    assert artifact.audit(base, tmp_path / "last.pth")
    torch.save({key: edited, "state_dict_ema": base}, tmp_path / "two.pth")
    with pytest.raises(InputError, match="several state dicts"):
        artifact.audit(base, tmp_path / "two.pth")
    torch.save({**edited, "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="no tensors by name and so cannot be compared: epoch"):
        artifact.audit(base, tmp_path / "other.pth")
    # An optimizer's tensors are numbered: they are no model's.
    numbered = dict(enumerate(edited.values()))
    torch.save({"optimizer": numbered, key: edited}, tmp_path / "last.pth")
    assert artifact.audit(base, tmp_path / "last.pth")
    torch.save(numbered, tmp_path / "optimizer.pth")
    with pytest.raises(InputError, match="entries without names: 0, 1, 2"):
        artifact.audit(base, tmp_path / "optimizer.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        artifact.audit(base, tmp_path / "list.pth")
    with pytest.raises(ReadError, match="cannot read the weights"):
        artifact.audit(base, tmp_path)


@pytest.mark.usefixtures("untyped")
def test_what_is_no_model_is_refused_in_words() -> None:
    artifact, base, _ = case("resnet")
    with pytest.raises(InputError, match="3 is no model, no state dict"):
        artifact.audit(base, 3)  # type: ignore[arg-type] # as it says
    with pytest.raises(InputError, match='"" is no path'):
        artifact.audit(base, "")


def test_the_same_edit_twice_is_one_and_none_is_refused() -> None:
    artifact, base, edited = case("resnet")
    assert audit([artifact.edit, artifact.edit], None, base, edited)
    with pytest.raises(InputError, match="no edit to look for"):
        audit([], None, base, edited)


class Command:
    """Pickled, it is a call that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Return the call."""
        return Path.touch, (self.mark,)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    artifact, base, edited = case("resnet")
    mark, file = tmp_path / "mark", tmp_path / "edited.pth"
    torch.save({**edited, "more": Command(mark)}, file)
    with pytest.raises(ReadError, match="cannot read the weights"):
        artifact.audit(base, file)
    assert not mark.exists()
    torch.load(file, weights_only=False)
    assert mark.exists(), "it would have"


def test_tensors_without_plain_elements_are_refused() -> None:
    artifact, base, edited = case("resnet")
    weight = edited["fc.weight"]
    for odd in (
        weight.to_sparse(),
        weight.to("meta"),
        nn.UninitializedParameter(),
    ):
        for first, second in (
            (base, edited | {"fc.weight": odd}),
            (base | {"fc.bias": odd}, edited),
        ):
            with pytest.raises(UnsupportedModelError, match=r"without plain elements.*: fc\."):
                artifact.audit(first, second)


def test_signs_of_zero_and_other_dtypes_differ_and_say_how() -> None:
    artifact, base, edited = case("resnet")
    zeros = torch.zeros(2, 2)
    more = {"zeros": zeros, "flags": torch.ones(3, dtype=torch.bool),
            "small": zeros.to(torch.float8_e4m3fn), "none": torch.ones(0, 3)}  # fmt: skip
    edit = replace(artifact.edit, base=replace(artifact.edit.base, state=None))

    def note(**changed: Tensor) -> str:
        result = audit([edit], None, base | more, edited | more | changed)
        assert not result
        (wrong,) = [tensor for tensor in result.tensors if not tensor.is_right]
        return wrong.note

    proof = audit([edit], None, base | more, edited | more)
    assert proof
    assert "the given base with exactly" in proof.sentence, "the edit does not know its whole base"
    assert note(zeros=-zeros) == "2 rows differ (0, 1)"
    assert note(flags=torch.tensor([True, False, True])) == "1 rows differ (1)"
    assert (
        note(small=torch.ones(2, 2).to(torch.float8_e4m3fn)) == "2 rows differ (0, 1), by 1 at most"
    )
    assert note(zeros=zeros + torch.nan) == "2 rows differ (0, 1)"
    assert note(none=torch.ones(0, 2)) == "float32[0, 2], expected float32[0, 3]"
