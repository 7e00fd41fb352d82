"""Sparse products give the values and gradients of dense ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.kernels import sparse
from salve_plugin.discover.kernels.encoder import (
    MAX_DENSITY,
    encode_above,
    encode_at,
    pre_activations,
)
from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.sparse import Code, Support, decode_at


def randn(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random, dtype=torch.float64)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    rows=st.integers(1, 7),
    latents=st.integers(1, 9),
    width=st.integers(1, 5),
    density=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_equal_those_of_dense_products(
    rows: int, latents: int, width: int, density: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, latents, generator=random) < density
    x, wanted = randn(random, rows, width), randn(random, rows, width)
    weight, atoms = randn(random, latents, width), randn(random, latents, width)
    trained = [tensor.requires_grad_() for tensor in (weight, randn(random, latents), atoms)]

    pre = functional.linear(x, *trained[:2])
    dense = (pre * mask) @ atoms
    support = Support.of_mask(mask)
    values = encode_at(x, trained[0], trained[1], support, pre.detach())
    scattered = decode_at(values, support, atoms)
    torch.testing.assert_close(values, pre[mask])
    torch.testing.assert_close(scattered, dense)
    for one, other in zip(
        torch.autograd.grad((scattered * wanted).sum() + values.square().sum(), trained),
        torch.autograd.grad((dense * wanted).sum() + (pre * mask).square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("density", [0.0, 0.3])
def test_derivatives_agree_with_finite_differences(density: float) -> None:
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 8, generator=random) < density
    mask[2] = False  # a row without any
    support = Support.of_mask(mask)
    x, weight, bias = randn(random, 6, 3), randn(random, 8, 3), randn(random, 8)
    values, atoms = randn(random, int(mask.sum())), randn(random, 8, 3)

    def encode(weight: Tensor, bias: Tensor) -> Tensor:
        return encode_at(x, weight, bias, support, functional.linear(x, weight, bias).detach())

    assert torch.autograd.gradcheck(encode, [weight.requires_grad_(), bias.requires_grad_()])
    assert torch.autograd.gradcheck(
        lambda values, atoms: decode_at(values, support, atoms),
        [values.requires_grad_(), atoms.requires_grad_()],
    )


def test_a_support_of_indices_is_that_of_the_same_mask_in_whatever_order_they_come() -> None:
    indices = torch.tensor([[4, 1], [0, 3], [2, 0]])
    mask = torch.zeros(3, 5, dtype=torch.bool).scatter(1, indices, True)
    one, other = Support.of_indices(indices, 5), Support.of_mask(mask)
    values = torch.arange(1.0, 7.0)
    dense = one.dense(values)
    assert dense.tolist() == [[0, 2, 0, 0, 1], [3, 0, 0, 4, 0], [6, 0, 5, 0, 0]]
    torch.testing.assert_close(one.gather(dense), values)
    assert one.counts().tolist() == other.counts().tolist() == [2, 1, 1, 1, 1]
    atoms = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        decode_at(one.gather(dense), one, atoms), decode_at(other.gather(dense), other, atoms)
    )


def test_gradients_do_not_depend_on_the_order_within_a_row() -> None:
    """`topk` returns latents unsorted."""
    random = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(9, generator=random)[:4] for _ in range(5)])
    support = Support.of_indices(indices, 9)
    values = randn(random, 20).requires_grad_()
    atoms = randn(random, 9, 3).requires_grad_()
    wanted = randn(random, 5, 3)
    one = torch.autograd.grad((decode_at(values, support, atoms) * wanted).sum(), [values, atoms])
    dense = torch.autograd.grad(((support.dense(values) @ atoms) * wanted).sum(), [values, atoms])
    torch.testing.assert_close(one, dense)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_dense_code_says_the_same_as_a_sparse_one(share: float) -> None:
    """Above a fifth of active latents the code is dense, and whoever asks must not notice."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias = randn(random, 40, 6), randn(random, 30, 6), randn(random, 30)
    pre = functional.linear(x, weight, bias)
    least = float(pre.flatten().sort().values[-max(1, int(share * pre.numel()))])
    chosen = pre > least
    code = encode_above(x, weight.requires_grad_(), bias, pre.detach(), least)
    assert (code.support is None) == (share > MAX_DENSITY)
    factor = randn(random, 30).requires_grad_()
    zeroed = code.values * chosen if code.support is None else code.values
    code = code.replaced(zeroed * code.at(factor))
    atoms = randn(random, 30, 6)
    torch.testing.assert_close(code.decode(atoms), (pre * chosen * factor) @ atoms)
    assert code.counts().tolist() == chosen.sum(0).tolist()
    for tensor in (weight, factor):
        (one,) = torch.autograd.grad(code.decode(atoms).sum(), tensor, retain_graph=True)
        reference = (functional.linear(x, weight, bias) * chosen * factor) @ atoms
        torch.testing.assert_close(one, torch.autograd.grad(reference.sum(), tensor)[0])


def test_a_chosen_latent_that_is_zero_is_not_counted() -> None:
    support = Support.of_indices(torch.tensor([[0, 2], [2, 1]]), 4)
    assert Code(torch.tensor([1.0, 0.0, -2.0, 0.0]), support).counts().tolist() == [1, 0, 1, 0]
    assert Code(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).counts().tolist() == [2, 0]


@pytest.mark.parametrize("share", [0.05, 0.5], ids=["sparse", "dense"])
def test_products_in_bfloat16_leave_codes_and_gradients_in_the_type_of_the_tensors(
    share: float,
) -> None:
    random = torch.Generator().manual_seed(0)
    x, weight, atoms = (torch.randn(30, 6, generator=random) for _ in range(3))
    weight.requires_grad_()
    bound = float((x @ weight.detach().T).quantile(1 - share))

    def gradient(autocast: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            bias = torch.zeros(30)
            pre = pre_activations(x, weight, bias)
            code = encode_above(x, weight, bias, pre, bound)
            assert (code.support is None) == (share > MAX_DENSITY)
            assert code.values.dtype == torch.float32
            values = code.values if code.support else code.values * (pre > bound)
            loss = (x - code.replaced(values).decode(atoms)).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        return gradient

    exact = gradient(False)
    # a product is 0.4 % off, and what is near the bound may be on either side of it
    assert float((gradient(True) - exact).norm() / exact.norm()) < 0.05


def test_pre_activations_may_stay_as_rough_as_autocast_makes_them() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 8, 6, generator=random)
    bias = torch.randn(8, generator=random)
    with torch.autocast("cpu", torch.bfloat16):
        rough = pre_activations(x, weight, bias, rough=True)
        widened = pre_activations(x, weight, bias)
    assert (rough.dtype, widened.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(rough.float(), widened)
    exact = pre_activations(x, weight, bias, rough=True)
    assert torch.equal(exact, torch.addmm(bias, x, weight.T))


@pytest.mark.parametrize(("rows", "latents"), [(5, 9), (9, 5)])
def test_gradients_in_memory_that_is_kept_are_the_same(
    rows: int, latents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was left over there, NaN included; a latent of no row gets zero."""
    monkeypatch.setattr(sparse, "KEPT_FROM", 1)
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(rows, latents, generator=random) < 0.4
    mask[:, 2] = False
    x, weight, atoms = (randn(random, n, 3) for n in (rows, latents, latents))
    trained = [tensor.requires_grad_() for tensor in (weight, randn(random, latents), atoms)]
    scratch = Scratch()
    found = []
    for lent in (None, scratch, scratch):
        scratch.restart()
        for _ in range(2):
            scratch.take(latents, 3, x).fill_(torch.nan)
        scratch.restart()
        support = Support.of_mask(mask, lent)
        pre = pre_activations(x, weight, trained[1])
        values = encode_at(x, weight, trained[1], support, pre)
        for tensor in trained:
            tensor.grad = None
        decode_at(values.square(), support, atoms).square().sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        found.append([tensor.grad.clone() for tensor in trained if tensor.grad is not None])
    assert found[0][0][2].abs().sum() == 0
    for kept in found[1:]:
        torch.testing.assert_close(kept, found[0])
    assert weight.grad is not None
    lent_memory = {memory.data_ptr() for memory in scratch._lent}
    assert weight.grad.data_ptr() in lent_memory  # autograd has not copied it
