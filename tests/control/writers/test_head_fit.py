"""Pairs that are to agree: the loss against autograd, and what agreement does to decisions."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_updates import draw, weight_after
from torch import Tensor
from torch.nn import functional

from salve_plugin import Activations, HookedModel, refit_head
from salve_plugin.control.writers.head_fit import fitted_head, flip_shares
from salve_plugin.errors import InputError


def loss_of(
    weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor, shares: Tensor, agreement: Tensor
) -> Tensor:
    """Return the loss without the pull, written with torch's own functions."""
    logs = functional.linear(x, weight, bias).log_softmax(1)
    first, second = logs.chunk(2)
    each = functional.nll_loss(logs, labels, reduction="none")
    kl = [
        functional.kl_div(b, a, log_target=True, reduction="none").sum(1)
        for a, b in ((first, second), (second, first))
    ]
    return (shares * each).sum() + (agreement * (kl[0] + kl[1])).sum()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**20), st.sampled_from([2, 5]), st.sampled_from([3, 40]),
    st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([1e-2, 1.0]), st.sampled_from([1e-2, 1e2]),
)  # fmt: skip
def test_no_gradient_is_left(
    seed: int, classes: int, width: int, strength: float, l2: float, scale: float
) -> None:
    # Also with more features than the 24 images, where the fit looks in their span only.
    weight, bias = draw(seed, classes, width) / scale, draw(seed + 1, classes)
    x, labels = draw(seed + 2, 24, width) * scale, torch.arange(12).repeat(2) % classes
    shares, agreement = draw(seed + 3, 24).abs(), strength * draw(seed + 4, 12).abs() / 12
    shares /= shares.sum()
    base = functional.linear(x, weight, bias)
    fit = fitted_head(x, base, labels, shares, l2, agreement=agreement)
    assert fit.bias is not None
    size = float((shares @ x.square().mean(1)).sqrt())
    parts = [part.clone().requires_grad_() for part in (weight + fit.weight, bias + fit.bias)]
    pull = (size * (parts[0] - weight)).square().sum() + (parts[1] - bias).square().sum()
    loss = loss_of(parts[0], parts[1], x, labels, shares, agreement) + l2 / 2 * pull
    gradients = torch.autograd.grad(loss, parts)
    assert float(gradients[0].abs().max()) / size < 1e-5
    assert float(gradients[1].abs().max()) < 1e-5
    assert fit.steepest < 1e-5
    before = loss_of(weight, bias, x, labels, shares, agreement)
    assert float(loss.detach()) <= float(before) + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 6), st.integers(1, 30))
def test_a_class_counts_by_its_share_of_flips(seed: int, classes: int, pairs: int) -> None:
    base = draw(seed, 2 * pairs, classes)
    labels = torch.randint(classes, (pairs,), generator=torch.Generator().manual_seed(seed))
    shares = flip_shares(base, labels)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0).double())
    flipped = base[:pairs].argmax(1) != base[pairs:].argmax(1)
    if not bool(flipped.any()):
        flipped[:] = True
    rates = {c: float(flipped[labels == c].double().mean()) for c in set(labels.tolist())}
    for label, rate in rates.items():
        own = float(shares[labels == label].sum())
        assert own == pytest.approx(rate / sum(rates.values()), abs=1e-12)


def test_pairs_that_never_flip_count_alike() -> None:
    base = functional.one_hot(torch.arange(4).repeat(2), 4).double()
    torch.testing.assert_close(flip_shares(base, torch.arange(4)), torch.full((4,), 0.25).double())


def marked(with_head: Callable[..., HookedModel]) -> tuple[HookedModel, Tensor, Tensor, Tensor]:
    """Return a head that reads a mark (feature 5), and pictures without and with the mark."""
    weight = draw(1, 3, 6)
    weight[:, 5] = torch.tensor([4.0, -4.0, 0.0])
    without, labels = draw(2, 90, 6), torch.arange(90) % 3
    without[torch.arange(90), labels] += 2.0
    without[:, 5] = 0.1 * without[:, 5]
    there = without.clone()
    there[:, 5] += 1.0
    return with_head(weight, draw(3, 3)), without, there, labels


def test_agreement_takes_the_flips_away(with_head: Callable[..., HookedModel]) -> None:
    hooked, without, there, labels = marked(with_head)

    def flips(weight: Tensor, bias: Tensor) -> float:
        first, second = (functional.linear(x, weight, bias).argmax(1) for x in (without, there))
        return float((first != second).double().mean())

    shares = {}
    for agreement in (0.0, 10.0, 1000.0):
        edit = refit_head(hooked, (there, labels), without=(without, labels), agreement=agreement)
        bias = edit.edited(hooked.model).get_parameter("head.bias").detach().double()
        shares[agreement] = flips(weight_after(hooked, edit), bias)
    before = flips(*(part.detach().double() for part in hooked.unembed()))
    assert shares[1000.0] <= shares[10.0] <= shares[0.0] < before
    assert shares[1000.0] < 0.05 < before


def test_pairs_are_the_same_images(
    with_head: Callable[..., HookedModel], digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    hooked, without, there, labels = marked(with_head)
    with pytest.raises(InputError, match="90 images whose labels are not those of the 90"):
        refit_head(hooked, (there, labels), without=(without, labels.flip(0)))
    with pytest.raises(InputError, match=r"agreement -1\.0 is to be a number from 0"):
        refit_head(hooked, (there, labels), without=(without, labels), agreement=-1.0)
    # A recording is its own pair: nothing disagrees, and the optimum is that of the images alone.
    alone = refit_head(digits_hooked, digits_acts, l2=1e-2)
    (head,) = digits_hooked.heads
    pairs = refit_head(digits_hooked, digits_acts, without=digits_acts, l2=1e-2)
    one, other = (weight_after(digits_hooked, edit, head) for edit in (alone, pairs))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(one.abs().max()))
