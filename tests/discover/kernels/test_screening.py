"""What a product in bfloat16 rules out is never among the k largest of the exact product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.discover.kernels import screening
from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.kernels.screening import largest_error, pays, screened
from salve_plugin.discover.training.fit import fit


def factors(
    seed: int, rows: int, latents: int, width: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random)
    weight = torch.randn(latents, width, generator=random)
    weight *= torch.rand(latents, 1, generator=random) ** (spread - 1)
    return x, weight, torch.randn(latents, generator=random)


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.double() @ weight.double().T + bias.double()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 20),
    latents=st.sampled_from([8, 40, 256]),
    width=st.sampled_from([1, 7, 64]),
    k=st.integers(1, 4),
    spread=st.sampled_from([1.0, 3.0]),
)
def test_the_k_largest_are_those_of_the_product_in_float64(
    seed: int, rows: int, latents: int, width: int, k: int, spread: float
) -> None:
    x, weight, bias = factors(seed, rows, latents, width, spread)
    found = screened(x, weight, bias, k, Scratch())
    if found is None:
        return
    assert found.known is not None
    values, chosen = found.known.view(rows, k), found.latents.view(rows, k).long()
    pre = exact(x, weight, bias)
    wanted = pre.topk(k, dim=1).values.float()
    torch.testing.assert_close(values.sort(1, descending=True).values, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pre.gather(1, chosen).float(), values, rtol=1e-5, atol=1e-5)
    assert all(len(set(line)) == k for line in chosen.tolist())


def test_it_is_worth_it_on_random_data() -> None:
    """Otherwise the test above would say nothing."""
    x, weight, bias = factors(0, 64, 1024, 128)
    assert screened(x, weight, 0.1 * bias, 16, Scratch()) is not None


def test_it_is_worth_it_on_wide_rows_of_few_atoms() -> None:
    """Most of the k largest are then next to nothing, and close together."""
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(4096, 2048, generator=random), dim=1)
    x = weight[torch.randint(4096, (32, 2), generator=random)].sum(1)
    assert screened(x, weight, torch.zeros(4096), 16, Scratch()) is not None


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("aligned", [False, True], ids=["random", "aligned"])
def test_the_product_is_as_close_as_the_bound_says(size: float, aligned: bool) -> None:
    x, weight, bias = factors(1, 200, 300, 96)
    if aligned:  # all rounding errors are as large as can be, and in one direction
        x = torch.full_like(x, 1 + 2**-8)
        weight = torch.full_like(weight, 1 + 2**-8)
    weight = size * weight
    kind = torch.bfloat16
    rough = torch.addmm(bias.to(kind), x.to(kind), weight.to(kind).T).double()
    # One latent at a time: its bound is then by its own norm and bias, and no wider.
    bounds = [
        largest_error(x, weight[[j]], bias[[j]], rough[:, j].float()) for j in range(len(weight))
    ]
    share = ((rough - exact(x, weight, bias)).abs() / torch.stack(bounds, 1)).max()
    assert share < 1
    assert not aligned or share > 0.3  # and not much closer, so that the bound is not too wide


def test_latents_closer_than_bfloat16_can_tell_apart_are_told_apart() -> None:
    """A few such rows are computed in float32, and only if all are such is it given up."""
    x, weight, bias = factors(2, 64, 1024, 32)
    weight[:200, 0] = 5 + 1e-5 * torch.arange(200)
    weight[:200, 1:] = 0
    bias[:] = 0
    x[:5] = 0
    x[:5, 0] = 20
    x[:5, 1:] = 0.01 * x[5:10, 1:]
    found = screened(x, weight, bias, 8, Scratch())
    assert found is not None
    wanted = exact(x, weight, bias).topk(8, dim=1).indices
    chosen = found.latents.view(64, 8).long().sort(1).values
    assert torch.equal(chosen, wanted.sort(1).values)
    rough = (x.bfloat16() @ weight.bfloat16().T).topk(8, dim=1).indices
    assert not torch.equal(rough[:5].sort(1).values, wanted[:5].sort(1).values)
    assert screened(x[:5], weight, bias, 8, Scratch()) is None


def test_nan_is_never_screened_away() -> None:
    x, weight, bias = factors(3, 64, 512, 32)
    x[7, 3] = torch.nan
    found = screened(x, weight, bias, 8, Scratch())
    assert found is not None
    assert found.known is not None
    nan = found.known.view(64, 8).isnan()
    assert nan[7].all()
    assert int(nan.sum()) == 8
    weight[5, 5] = torch.nan
    assert screened(x, weight, bias, 8, Scratch()) is None


def test_it_pays_for_large_dictionaries_in_float32_on_a_processor_that_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.zeros(2, 8)
    monkeypatch.setattr(screening, "has_bfloat16", lambda: True)
    assert pays(x, 8192, 32)
    assert not pays(x, 512, 32)
    assert not pays(x, 8192, 4096)
    assert not pays(x.double(), 8192, 32)
    assert not pays(torch.zeros(2, 5000), 8192, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, 8192, 32)
    monkeypatch.setattr(screening, "has_bfloat16", lambda: False)
    assert not pays(x, 8192, 32)


@pytest.mark.parametrize("learner", ["topk", "poly"])
def test_a_screened_fit_learns_what_an_unscreened_one_does(
    learner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dead latents and their auxiliary loss, which computes its own pre-activations."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(900, 20, generator=random) @ torch.randn(20, 20, generator=random)
    given = {"n_latents": 96, "k": 3, "steps": 40, "batch_size": 64, "learning_rate": 0.003}
    plain = fit(rows, learner, **given)  # type: ignore[arg-type] # plain arguments
    calls = []

    def counted(*arguments: object) -> object:
        calls.append(screened(*arguments))  # type: ignore[arg-type] # as given
        return calls[-1]

    monkeypatch.setattr(screening, "FROM_LATENTS", 1)
    monkeypatch.setattr(screening, "has_bfloat16", lambda: True)
    monkeypatch.setattr("salve_plugin.discover.learners.topk.screened", counted)
    fast = fit(rows, learner, **given)  # type: ignore[arg-type] # plain arguments
    again = fit(rows, learner, **given)  # type: ignore[arg-type] # plain arguments
    assert sum(call is not None for call in calls) > 60
    assert fast.digest == again.digest
    for name in ("atoms", "encoder_weight"):
        one, other = getattr(fast, name), getattr(plain, name)
        assert float((one - other).norm() / other.norm()) < 0.02
