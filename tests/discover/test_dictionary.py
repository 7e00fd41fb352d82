"""The dictionary: its algebra, its gradients, and its identity."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError
from salve_plugin.site import Site
from salve_plugin.store.digest import content_digest
from salve_plugin.store.reference import Reference

LATENTS, WIDTH = 4, 6


def site(width: int = WIDTH) -> Site:
    return Site("unembed.hook_in", "fc", "in", "pooled", width, readers=("fc",))


def tensors(seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "atoms": functional.normalize(randn(LATENTS, WIDTH), dim=1),
        "encoder_weight": randn(LATENTS, WIDTH),
        "encoder_bias": randn(LATENTS),
        "decoder_bias": randn(WIDTH),
    }


@pytest.fixture
def dictionary() -> Dictionary:
    return Dictionary(tensors(), L1(), site(), {"seed": 0, "held_out_r2": 0.9})


@given(leading=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=25, derandomize=True)
def test_codes_and_reconstructions_are_the_two_affine_maps(leading: list[int], seed: int) -> None:
    parts = tensors(seed)
    dictionary = Dictionary(parts, L1(), site())
    x = torch.randn(*leading, WIDTH, generator=torch.Generator().manual_seed(seed))
    weight, bias, atoms, offset = (
        parts[name].double() for name in ("encoder_weight", "encoder_bias", "atoms", "decoder_bias")
    )
    codes = torch.einsum("...d,ld->...l", x.double(), weight) + bias
    back = torch.einsum("...l,ld->...d", codes, atoms) + offset
    torch.testing.assert_close(dictionary.pre_activation(x).double(), codes, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.encode(x), dictionary.pre_activation(x))
    torch.testing.assert_close(dictionary(x).double(), back, rtol=1e-5, atol=1e-5)


def test_a_code_is_the_length_of_its_atoms_contribution(dictionary: Dictionary) -> None:
    one = torch.zeros(LATENTS)
    one[2] = -3.5
    moved = dictionary.decode(one) - dictionary.decode(torch.zeros(LATENTS))
    assert float(moved.norm()) == pytest.approx(3.5, rel=1e-5)


def test_it_is_frozen_and_differentiable_in_the_activations(dictionary: Dictionary) -> None:
    assert not dictionary.training
    assert not any(parameter.requires_grad for parameter in dictionary.parameters())
    x = torch.randn(3, WIDTH, requires_grad=True)
    (gradient,) = torch.autograd.grad(dictionary.pre_activation(x)[:, 1].sum(), x)
    torch.testing.assert_close(gradient, dictionary.encoder_weight[1].expand(3, WIDTH))


def test_one_made_under_inference_mode_is_differentiable_too(tmp_path: Path) -> None:
    with torch.inference_mode():
        dictionary = Dictionary(tensors(), L1(), site())
        dictionary.save_pretrained(tmp_path)
        loaded = Dictionary.from_pretrained(tmp_path)
    for each in (dictionary, loaded):
        x = torch.randn(WIDTH, requires_grad=True)
        each.decode(each.encode(x)).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        assert x.grad is not None


def test_low_precision_activations_are_read_in_the_dictionarys_precision(
    dictionary: Dictionary,
) -> None:
    x = torch.randn(5, WIDTH).bfloat16()
    assert torch.equal(dictionary.encode(x), dictionary.encode(x.float()))


@pytest.mark.parametrize("shape", [(5,), (2, 7), (6, 5)])
def test_a_wrong_width_is_refused(dictionary: Dictionary, shape: tuple[int, ...]) -> None:
    wrong = torch.zeros(shape)
    for function in (dictionary.pre_activation, dictionary.encode, dictionary.decode, dictionary):
        with pytest.raises(InputError, match="do not fit a dictionary of"):
            function(wrong)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("atoms", torch.eye(4, 6) * 1.01, "atom 0 has norm 1.01"),
        ("atoms", torch.eye(4, 5), r"atoms have shape \(4, 5\); expected \(latents, 6\)"),
        ("atoms", torch.eye(4, 6).long(), "atoms is torch.int64"),
        ("encoder_weight", torch.zeros(6, 4), r"encoder_weight is .*\(6, 4\)"),
        ("encoder_bias", torch.full((4,), torch.nan), "encoder_bias holds NaN"),
        ("decoder_bias", torch.full((6,), torch.inf), "decoder_bias holds NaN or infinite"),
        ("gate", torch.zeros(4), "this dictionary has tensors"),
    ],
)
def test_tensors_that_make_no_dictionary_are_refused(
    name: str, value: Tensor, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        Dictionary({**tensors(), name: value}, L1(), site())


def test_the_digest_depends_on_content_only(dictionary: Dictionary) -> None:
    assert Dictionary(tensors(), L1(), site(), {"other": 1}).digest == dictionary.digest
    others = [
        Dictionary(tensors(1), L1(), site()),
        Dictionary(tensors(), L1(l1=0.2), site()),
        Dictionary(tensors(), L1(), Site("other", "fc", "in", "pooled", WIDTH)),
        Dictionary(tensors(), L1(), site()).bfloat16(),
    ]
    assert len({dictionary.digest, *(other.digest for other in others)}) == 5


def test_a_negative_zero_is_zero(dictionary: Dictionary) -> None:
    zeros = {**tensors(), "encoder_bias": torch.zeros(LATENTS)}
    negative = {**zeros, "encoder_bias": -zeros["encoder_bias"]}
    digests = {Dictionary(each, L1(), site()).digest for each in (zeros, negative)}
    assert len(digests) == 1


def test_its_place_on_the_hub_is_forgotten_when_its_tensors_change(dictionary: Dictionary) -> None:
    place = Reference("me/dictionary", "0" * 40)
    assert dictionary.origin is None
    dictionary.origin = place
    dictionary.meta = {}
    assert dictionary.origin == place
    assert dictionary.bfloat16().origin is None
    dictionary.origin = place
    assert dictionary.origin == place
    dictionary.origin = None
    assert dictionary.origin is None


def test_the_digest_is_computed_once_and_again_whenever_a_tensor_changed(
    dictionary: Dictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(fields: object, tensors: dict[str, Tensor]) -> str:
        calls.append(1)
        return content_digest(fields, tensors)

    monkeypatch.setattr("salve_plugin.discover.dictionary.content_digest", counted)
    first = dictionary.digest
    assert (dictionary.digest, dictionary.digest, len(calls)) == (first, first, 1)
    # Rounded and back: of the same type and shape, maybe at the same address, but not the same.
    assert dictionary.half().float().digest != first
    dictionary = Dictionary(tensors(), L1(), site())
    assert dictionary.digest == first
    with torch.no_grad():
        dictionary.decoder_bias += 1
    changed = dictionary.digest
    assert changed != first
    dictionary.load_state_dict(Dictionary(tensors(), L1(), site()).state_dict())
    assert dictionary.digest == first
    with torch.inference_mode():
        same = Dictionary(tensors(), L1(), site()).to(torch.float64).to(torch.float32)
    assert same.digest == first == deepcopy(dictionary).digest


def test_a_dictionary_made_with_its_place_has_it_until_it_changes() -> None:
    place = Reference("me/dictionary", "0" * 40)
    dictionary = Dictionary(tensors(), L1(), site(), origin=place)
    assert dictionary.origin == place
    with torch.no_grad():
        dictionary.encoder_bias[0] += 1
    assert dictionary.origin is None
