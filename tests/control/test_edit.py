"""An edit is a checked value whose digest is its identity."""

import json
import math
import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from salve_plugin import Dictionary, HookedModel, SalveError, Site, edit_at, enhance, suppress
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate, LowRankUpdate
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.targets import Target
from salve_plugin.errors import (
    BaseMismatchError,
    InputError,
    UnknownSiteError,
    UnsupportedModelError,
)
from salve_plugin.store.digest import sha256_tensor


def test_it_holds_the_atom_and_the_fingerprint_of_what_it_touches(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=3, strength=2.0, rows=[2, 0])
    assert torch.equal(edit.gate.directions, atoms.atoms[3:4])
    assert (edit.rows, edit.gate.strength, edit.gate.mode) == ((0, 2), 2.0, "suppress")
    assert list(edit.base.tensors) == ["head.weight"]
    print_ = edit.base.tensors["head.weight"]
    weight = tiny.model.get_parameter("head.weight")
    assert (print_.shape, print_.dtype) == ((4, 6), "float32")
    assert print_.sha256 == sha256_tensor(weight)
    assert edit.dictionary_digest == atoms.digest


def test_rows_of_an_update_stay_with_the_rows_they_were_given_for(tiny: HookedModel) -> None:
    left, right = torch.tensor([[1.0], [2.0]]), torch.ones(6, 1)
    update = LowRankUpdate(left.double(), right.double(), torch.tensor([5.0, 7.0]).double())
    edit = edit_at(tiny, "unembed.hook_in", update, rows=[3, 1])
    assert edit.rows == (1, 3)
    before = tiny.model.get_submodule("head")
    after = edit.edited(tiny.model).get_submodule("head")
    weight = (after.get_parameter("weight") - before.get_parameter("weight")).detach()
    bias = (after.get_parameter("bias") - before.get_parameter("bias")).detach()
    torch.testing.assert_close(weight, torch.tensor([0.0, 2, 0, 1])[:, None].expand(4, 6))
    torch.testing.assert_close(bias, torch.tensor([0.0, 7, 0, 5]))
    update = LowRankUpdate(left.flip(0).double(), right.double(), torch.tensor([7.0, 5]).double())
    assert edit_at(tiny, "unembed.hook_in", update, rows=[1, 3]) == edit


def test_every_reader_of_the_site_is_part_of_it(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    edit = enhance(tiny, make_dictionary(tiny.site("both")), latent=0, strength=1.0)
    assert list(edit.base.tensors) == ["head.weight", "side.weight"]
    assert edit.base.tensors["side.weight"].shape == (5, 6, 1, 1)


def test_it_survives_its_json_form_and_pickle_with_the_same_digest(
    tiny: HookedModel, atoms: Dictionary
) -> None:
    edit = suppress(tiny, atoms, latent=3, strength=1.5, rows=[1])
    text = json.dumps(edit.to_json(), allow_nan=False)
    again = Edit.from_json(json.loads(text), {"directions": edit.gate.directions.clone()})
    assert again == edit
    assert again.digest == edit.digest
    assert pickle.loads(pickle.dumps(edit)) == edit
    assert deepcopy(edit) is edit


def test_the_digest_tells_every_field_apart(tiny: HookedModel, atoms: Dictionary) -> None:
    edit = suppress(tiny, atoms, latent=3, strength=1.5)
    others = [
        suppress(tiny, atoms, latent=4, strength=1.5),
        suppress(tiny, atoms, latent=3, strength=1.5000001),
        suppress(tiny, atoms, latent=3, strength=1.5, rows=[0, 1, 2, 3]),
        enhance(tiny, atoms, latent=3, strength=1.5),
        replace(edit, operator=replace(edit.gate, directions=atoms.atoms[4:5])),
        replace(edit, provenance=replace(edit.provenance, dictionary=None)),
    ]
    assert len({edit, *others}) == 7
    assert edit == suppress(tiny, atoms, latent=3, strength=1.5)
    assert edit != "an edit"


def test_the_digest_is_the_same_on_every_machine() -> None:
    site = Site("unembed.hook_in", "fc", "in", "pooled", 2, readers=("fc",))
    fields = {
        "site": site.to_json(),
        "operator": {"form": "gate", "mode": "suppress", "strength": 0.1},
        "targets": [Target("fc.weight", None, "reader", "linear").to_json()],
        "rows": None,
        "base": {
            "description": {"architecture": "x"},
            "tensors": {"fc.weight": {"shape": [3, 2], "dtype": "float32", "sha256": "0" * 64}},
            "state": None,
            "network": None,
        },
        "provenance": Provenance().to_json(),
        "exactness": None,
    }
    edit = Edit.from_json(fields, {"directions": torch.tensor([[0.6, 0.8]])})
    assert edit.digest == "fd59affc01443c527cde4788ee3801c540fcb81a2986713dcf5062234e655380"


def test_it_keeps_its_own_copy_of_the_atom(tiny: HookedModel, atoms: Dictionary) -> None:
    directions = atoms.atoms[:1].clone()
    edit = suppress(tiny, atoms, latent=0, strength=1.0)
    edit = replace(edit, operator=Gate(directions, 1.0))
    directions.zero_()
    assert float(edit.gate.directions.norm()) == pytest.approx(1)
    with pytest.raises(FrozenInstanceError):
        edit.gate.strength = 3.0  # type: ignore[misc] # that it is frozen is the point


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 8}, "0 to 7"),
        ({"latent": -1}, "0 to 7"),
        ({"strength": -0.5}, "strength -0.5"),
        ({"strength": math.nan}, "strength nan"),
        ({"strength": math.inf}, "strength inf"),
        ({"rows": [4]}, "from 0 to 3"),
        ({"rows": [-1]}, "from 0 to 3"),
        ({"rows": [1, 1]}, "each once"),
        ({"rows": []}, "at least one"),
        ({"rows": [True]}, "output indices"),
    ],
)
def test_bad_arguments_are_named(
    tiny: HookedModel, atoms: Dictionary, options: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"latent": 0, "strength": 1.0} | options
    with pytest.raises(InputError, match=message):
        suppress(tiny, atoms, **arguments)  # type: ignore[arg-type] # wrong on purpose


def test_rows_must_exist_in_every_reader(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    both = make_dictionary(tiny.site("both"))
    assert suppress(tiny, both, latent=0, strength=1.0, rows=[3]).rows == (3,)
    with pytest.raises(InputError, match="from 0 to 3"):
        suppress(tiny, both, latent=0, strength=1.0, rows=[4])


def test_a_dictionary_of_another_site_or_model_is_refused(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    elsewhere = make_dictionary(Site("blocks.0.hook_resid_post", "x", "in", "pooled", 6))
    with pytest.raises(UnknownSiteError, match=r"unembed\.hook_in"):
        suppress(tiny, elsewhere, latent=0, strength=1.0)
    wide = make_dictionary(replace(tiny.site("both"), width=7))
    with pytest.raises(BaseMismatchError, match="7 features"):
        suppress(tiny, wide, latent=0, strength=1.0)


def test_a_site_that_no_layer_reads_is_refused(
    tiny: HookedModel, make_dictionary: Callable[..., Dictionary]
) -> None:
    with pytest.raises(UnsupportedModelError, match=r"choose one of .*unembed.hook_in"):
        suppress(tiny, make_dictionary(tiny.site("blind")), latent=0, strength=1.0)


def test_a_parametrized_weight_is_refused(tiny: HookedModel, atoms: Dictionary) -> None:
    head = tiny.model.get_submodule("head")
    torch.nn.utils.parametrizations.weight_norm(head)
    with pytest.raises(UnsupportedModelError, match="parametrization"):
        suppress(tiny, atoms, latent=0, strength=1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"provenance": {"kind": "latents", "latents": ["3"], "dictionary": None, "note": ""}},
        {"provenance": {"kind": "latents", "latents": [True], "dictionary": None, "note": ""}},
        {"operator": {"form": "gate", "mode": "suppress", "strength": "1"}},
        {"operator": {"form": "gate", "mode": "suppress", "strength": None}},
        {"rows": 1},
        {"rows": [9]},
        {"rows": ["1"]},
        {"operator": {"form": "gate", "mode": "erase", "strength": 1.0}},
        {"operator": {"form": "fold", "mode": "suppress", "strength": 1.0}},
        {"base": {}},
        {"base": {"description": {}, "tensors": {}}},
        {"site": {}},
        {"targets": []},
        {"exactness": {}},
        {"surplus": 1},
    ],
)
def test_a_malformed_json_form_is_refused(
    tiny: HookedModel, atoms: Dictionary, change: dict[str, object]
) -> None:
    edit = suppress(tiny, atoms, latent=3, strength=1.5)
    with pytest.raises(SalveError):
        Edit.from_json(edit.to_json() | change, edit.tensors)


def test_an_edit_prints_as_one_line(tiny: HookedModel, atoms: Dictionary) -> None:
    edit = suppress(tiny, atoms, latent=2, strength=1.5, rows=[3])
    assert repr(edit) == (
        f"<Edit {edit.digest[:12]}: suppress latent 2 of 'unembed.hook_in', strength 1.5, "
        "rows [3] of ['head.weight']>"
    )
