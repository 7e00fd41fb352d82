"""What an edit may write to, and the refusals that name the way out."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from small_network import MAKERS, Small, bits, small
from torch import nn

from salve_plugin import EditArtifact, Gate, HookedModel, LowRankMap, Site, attach, edit_at
from salve_plugin.control.folds import fold_of
from salve_plugin.control.slots import slots_of
from salve_plugin.control.targets import Target
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError

AXIS = torch.eye(6)[:, :1]
THROUGH_ORIGIN = LowRankMap(AXIS, AXIS, torch.zeros(1))
WITH_OFFSET = LowRankMap(AXIS, AXIS, torch.ones(1))
GATE = Gate(AXIS.T, 0.5)


def test_an_offset_does_not_reach_padding_and_the_message_says_what_does() -> None:
    hooked = small()
    with pytest.raises(UnsupportedModelError, match=r"pads with zeros.*through the origin"):
        edit_at(hooked, "stem", WITH_OFFSET)
    assert edit_at(hooked, "stem", THROUGH_ORIGIN).exactness is not None
    conv = hooked.model.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    conv.padding_mode = "circular"  # then padding is made of positions that the map has reached
    conv._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert edit_at(hooked, "stem", WITH_OFFSET).exactness is not None


def test_a_layer_without_bias_cannot_take_an_offset() -> None:
    hooked = small()
    hooked.model.get_submodule("qkv").register_parameter("bias", None)
    with pytest.raises(UnsupportedModelError, match=r"no bias.*offset 0"):
        edit_at(hooked, "norm", WITH_OFFSET)
    assert edit_at(hooked, "norm", THROUGH_ORIGIN).targets[0].bias is None
    hooked.model.get_submodule("norm0").register_parameter("bias", None)
    with pytest.raises(UnsupportedModelError, match="no bias"):
        edit_at(hooked, "stem", THROUGH_ORIGIN, role="writer")


def test_a_gate_behind_a_batch_norm_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="BatchNorm shifts"):
        edit_at(small(), "stem", GATE, role="writer")
    assert edit_at(small(), "attn_out", GATE).role == "writer"  # LayerScale only scales


def test_a_feature_that_is_scaled_away_cannot_be_written() -> None:
    hooked = small()
    with torch.no_grad():
        hooked.model.get_parameter("scale.gamma")[2] = 0
    with pytest.raises(UnsupportedModelError, match="by zero"):
        edit_at(hooked, "attn_out", THROUGH_ORIGIN)


def test_a_site_that_something_else_uses_is_refused_with_the_nearest_that_works() -> None:
    hooked = small()
    names = {**hooked.sites, "both": replace(hooked.site("sum"), name="both", module="norm0",
             side="out", layout="nchw", readers=("point",))}  # fmt: skip
    wrong = HookedModel(
        hooked.model, list(names.values()), attribution_site=None,
        description=hooked.description, heads={},
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"not linear uses the site.*choose one of"):
        edit_at(wrong, "both", THROUGH_ORIGIN)
    bare_site = Site("lonely", "norm0", "out", "nchw", 6)
    wrong = HookedModel(
        hooked.model, [*hooked.sites.values(), bare_site], attribution_site=None,
        description=hooked.description, heads={},
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"no linear layer is known.*choose one of"):
        edit_at(wrong, "lonely", THROUGH_ORIGIN)


def test_grouped_convolutions_and_other_layers_are_refused() -> None:
    hooked = small()
    hooked.model.conv = nn.Conv2d(6, 6, 3, padding=1, groups=2)
    with pytest.raises(UnsupportedModelError, match="ungrouped"):
        edit_at(hooked, "stem", THROUGH_ORIGIN)


def test_tied_weights_are_one_slot_with_all_their_owners() -> None:
    model = Small()
    slots = slots_of(model, ["head.weight", "twin.weight", "twin.bias"])
    assert slots["head.weight"].parameter is slots["twin.weight"].parameter
    owners = [(module, name) for module, name in slots["head.weight"].owners]
    assert owners == [(model.head, "weight"), (model.twin, "weight")]
    assert slots["twin.bias"].owners == ((model.twin, "bias"),)
    with pytest.raises(BaseMismatchError, match="no layer 'none'"):
        slots_of(model, ["none.weight"])


def test_both_biases_of_a_tied_weight_are_edited() -> None:
    edit = edit_at(small(), "sum", WITH_OFFSET)
    assert sorted(edit.base.tensors) == ["head.bias", "head.weight", "twin.bias"]
    assert edit.exactness is not None
    assert edit.exactness.difference <= 1e-5


def test_what_lies_behind_the_writer_is_compared_before_an_edit_is_applied() -> None:
    hooked = small()
    edit = MAKERS[10](hooked, random.Random(0))
    other = small()
    with torch.no_grad():
        other.model.get_parameter("scale.gamma")[0] += 0.5
    with pytest.raises(BaseMismatchError, match=r"between 'proj\.weight' and site 'attn_out'"):
        edit.apply_(other)
    edit.apply_(hooked)


def test_the_fold_of_a_batch_norm_is_its_own_formula() -> None:
    model = small().model
    fold = fold_of(model, ("norm0",), None, 6)
    x = torch.randn(2, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    norm = model.get_submodule("norm0")
    expected = norm(x).double()
    folded = x.double() * fold.scale[:, None, None] + fold.shift[:, None, None]
    torch.testing.assert_close(folded, expected, rtol=1e-5, atol=1e-5)
    last = fold_of(model, ("norm0",), "norm0.bias", 6)
    assert last.bias_last
    torch.testing.assert_close(last.shift + model.get_parameter("norm0.bias").double(), fold.shift)


@pytest.mark.parametrize(
    "change",
    [{"weight": 1}, {"role": "both"}, {"outputs": [3, 3]}, {"affine": ["a"]}, {"affine": None}],
)
def test_ill_formed_targets_are_refused(change: dict[str, object]) -> None:
    fields = Target("w", None, "reader", "linear").to_json()
    with pytest.raises(InputError):
        Target.from_json(fields | change)
    with pytest.raises(InputError, match="affine"):
        Target.from_json({name: value for name, value in fields.items() if name != "affine"})


def test_slices_are_counted_from_their_first_row() -> None:
    target = Target("qkv.weight", None, "reader", "linear", (6, 12))
    assert target.rows(None) == tuple(range(6, 12))
    assert target.rows((0, 5)) == (6, 11)
    target.check_shape(6, (18, 6))
    with pytest.raises(InputError, match="no linear weight that reads"):
        target.check_shape(6, (10, 6))


def test_a_scale_that_no_module_applies_is_folded_and_belongs_to_the_base(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8,) * 4)
    block = model.get_submodule("stages.1.blocks.0")
    with torch.no_grad():
        for name, scale in model.named_parameters():
            if name.endswith("gamma"):
                scale.copy_(torch.linspace(-0.5, 2, 8))
    hooked = attach(model.eval(), probe=torch.zeros(1, 3, 64, 64))
    axis = torch.eye(8)[:, 2:3]
    edit = edit_at(hooked, "blocks.1.0.hook_mlp_out", LowRankMap(axis, axis, torch.ones(1)))
    assert edit.targets[0].affine == ("stages.1.blocks.0.gamma",)
    assert edit.exactness is not None
    assert edit.exactness.difference <= 1e-6 < 1e-4 < edit.exactness.effect
    EditArtifact(edit).save_pretrained(tmp_path / "artifact")
    again = EditArtifact.from_pretrained(tmp_path / "artifact").edit
    pristine = bits(model)
    with again.applied(model):
        assert bits(model) != pristine
    assert bits(model) == pristine
    block.get_parameter("gamma").data[0] += 0.25
    with pytest.raises(BaseMismatchError, match=r"\['stages\.1\.blocks\.0\.gamma'\]"):
        again.apply_(model)
