"""One digest over a model's tensors: it sees everything but order, device and sharing."""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin.errors import UnsupportedModelError
from salve_plugin.store import digest as digest_module
from salve_plugin.store.digest import content_digest, fingerprints, sha256_tensor, state_digest
from salve_plugin.store.json import dump


def block(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def test_it_is_what_the_documentation_says_computed_without_any_of_our_hashing() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.0]]))
        model.bias.fill_(0.5)
    elements = {"bias": struct.pack("<f", 0.5), "weight": struct.pack("<2f", 1.0, -0.0)}
    shapes = {"bias": [1], "weight": [1, 2]}
    prints = {
        name: {
            "dtype": "float32",
            "sha256": hashlib.sha256(elements[name]).hexdigest(),
            "shape": shapes[name],
        }
        for name in ("bias", "weight")
    }
    data = block(dump(prints))
    assert state_digest(model) == hashlib.sha256(data).hexdigest()
    assert state_digest(model) == state_digest(model.state_dict())
    assert state_digest(model) == state_digest(fingerprints(model))


def test_content_is_hashed_block_by_block_as_the_documentation_says() -> None:
    data = block(b'{"a":1}')
    data += block(dump({"name": "w", "dtype": "float32", "shape": [1, 2]}))
    data += block(struct.pack("<2f", 1.0, -0.0))
    digest = content_digest({"a": 1}, {"w": torch.tensor([[1.0, -0.0]])})
    assert digest == hashlib.sha256(data).hexdigest()


def test_no_tensor_is_hashed_twice_where_its_fingerprint_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prints = fingerprints(nn.Linear(2, 1))
    monkeypatch.setattr(digest_module, "sha256_tensor", None)
    assert len(state_digest(prints)) == 64


DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
STATES = st.dictionaries(
    st.text(max_size=4),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
    max_size=4,
)


def tensors_of(state: dict[str, tuple[torch.dtype, list[int]]]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(0, 2, shape, generator=random).to(dtype)
        for name, (dtype, shape) in state.items()
    }


@settings(deadline=None, max_examples=100, derandomize=True)
@given(STATES, st.randoms(use_true_random=False))
def test_order_and_layout_do_not_matter_and_everything_else_does(state: dict, rng: object) -> None:  # type: ignore[type-arg] # as STATES draws it
    tensors = tensors_of(state)
    names = list(tensors)
    rng.shuffle(names)  # type: ignore[attr-defined] # a random.Random
    moved = {
        name: tensors[name].T.contiguous().T if tensors[name].ndim == 2 else tensors[name]
        for name in names
    }
    digest = state_digest(tensors)
    assert state_digest(moved) == digest == state_digest(OrderedDict(moved))
    assert state_digest({**tensors, "one more": torch.empty(0)}) != digest
    for name, tensor in tensors.items():
        others = {key: value for key, value in tensors.items() if key != name}
        assert state_digest(others) != digest
        assert state_digest({**others, name + "'": tensor}) != digest
        assert state_digest({**others, name: tensor[None]}) != digest
        if tensor.numel():
            flipped = tensor.clone().reshape(-1).view(torch.uint8)
            flipped[-1] ^= 1
            same_type = flipped.view(tensor.dtype).reshape(tensor.shape)
            assert state_digest({**others, name: same_type}) != digest


def test_views_that_torch_only_marks_are_hashed_as_what_they_are() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    plain = torch.tensor([1 - 2j, 3 + 1j])
    assert sha256_tensor(numbers.conj()) == sha256_tensor(plain)
    assert sha256_tensor(numbers.conj().imag) == sha256_tensor(plain.imag)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def lazy() -> Tensor:
    return nn.LazyLinear(2).weight


@pytest.mark.filterwarnings("ignore")  # torch's own, of kinds of tensors that it gives up
@pytest.mark.parametrize(
    ("make", "described"),
    [
        (quantized, "qint8"),
        (lambda: torch.ones(2, device="meta"), "on 'meta'"),
        (lambda: torch.ones(2, 2).to_sparse(), "sparse_coo"),
        (lambda: torch.ones(2, 2).to_sparse_csr(), "sparse_csr"),
        (lazy, "UninitializedParameter"),
        (lambda: "extra state", "a str"),
    ],
)
def test_what_has_no_plain_bytes_is_refused_by_name(
    make: Callable[[], Tensor], described: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"'head\.weight' has .*{described}"):
        state_digest({"bias": torch.ones(1), "head.weight": make()})
