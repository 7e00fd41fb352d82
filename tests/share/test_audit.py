"""An audit proves one sentence, or names the tensors that stand against it."""

import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_network import random_edits, small
from torch import Tensor, nn

from salve_plugin import Gate, LowRankMap, attach, edit_at
from salve_plugin.control.application import pristine_rows
from salve_plugin.control.edit import Edit
from salve_plugin.demo import digits
from salve_plugin.errors import InputError, ReadError
from salve_plugin.share.audit import audit

FIXTURES = Path(__file__).parents[1] / "fixtures"
State = dict[str, Tensor]


def network(kind: str) -> nn.Module:
    return digits.load(kind, FIXTURES / f"digits_{kind}.safetensors")  # type: ignore[arg-type] # a name


def atom(width: int) -> Tensor:
    direction: Tensor = torch.randn(width, 1, generator=torch.Generator().manual_seed(0))
    return nn.functional.normalize(direction, dim=0)


def head_edit(model: nn.Module, rows: list[int] | None = None) -> Edit:
    hooked = attach(model)
    width = hooked.site("unembed.hook_in").width
    return edit_at(hooked, "unembed.hook_in", Gate(atom(width).T, 2.0), rows=rows)


def hidden_edit(model: nn.Module) -> Edit:
    hooked = attach(model)
    direction = atom(hooked.site("blocks.1.mlp.hook_post").width)
    change = LowRankMap(direction, direction, torch.ones(1))
    return edit_at(hooked, "blocks.1.mlp.hook_post", change)


def state(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


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


def one_more(name: str, index: tuple[int, ...]) -> Callable[[State], None]:
    def change(tensors: State) -> None:
        tensors[name][index] += 1

    return change


WRONG: Mapping[str, tuple[Callable[[State], object], str]] = {
    "other layer": (
        one_more("conv1.weight", (0, 0, 0, 0)),
        "conv1.weight: changed otherwise 1 row",
    ),
    "bias": (one_more("fc.bias", (2,)), "fc.bias: changed otherwise 1 row"),
    "other row": (
        one_more("fc.weight", (5, 0)),
        r"fc.weight: .* 1 rows differ \(5\)",
    ),
    "edited row": (
        one_more("fc.weight", (1, 0)),
        r"fc.weight: .* 1 rows differ \(1\)",
    ),
    "a buffer": (one_more("bn1.running_mean", (0,)), "bn1.running_mean: changed otherwise"),
    "missing": (lambda tensors: tensors.pop("bn1.bias"), "bn1.bias: missing"),
    "added": (lambda tensors: tensors.update(more=torch.ones(1)), "more: added"),
}


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
    with pytest.raises(InputError, match="needs the pristine rows"):
        audit([edit], None, None, model)
    with pytest.raises(InputError, match="holds no tensors"):
        audit([edit], None, {}, model)
