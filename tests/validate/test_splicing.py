"""What splicing does to a model, in closed form and by running it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach
from salve_plugin.demo import digits
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError
from salve_plugin.site import Site, replacing
from salve_plugin.validate.splicing import (
    Behaviour,
    Splice,
    splice_head,
    splice_images,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def test_behaviour_at_the_head_is_that_of_numpys_softmax() -> None:
    weight, bias, x, labels = draw(4, 6), draw(4, seed=1), draw(30, 6, seed=2), torch.arange(30) % 4
    found = splice_head(weight, bias, x, labels, {"half": lambda r: r / 2}, mean=x.mean(0))["half"]
    replaced = {
        "clean": x, "spliced": x / 2, "mean": x.mean(0).expand_as(x), "zero": torch.zeros_like(x),
    }  # fmt: skip
    head, offset = weight.double().numpy(), bias.double().numpy()
    clean = softmax(x.double().numpy() @ head.T + offset)
    for name, rows in replaced.items():
        p = softmax(rows.double().numpy() @ head.T + offset)
        behaviour = getattr(found, name)
        of_label = p[np.arange(30), labels.numpy()]
        assert behaviour.cross_entropy == pytest.approx(-np.log(of_label).mean())
        assert behaviour.accuracy == pytest.approx((p.argmax(1) == labels.numpy()).mean())
        kl = (clean * np.log(clean / p)).sum(1).mean()
        assert behaviour.kl == pytest.approx(kl, abs=1e-9)
    assert found.n_images == 30


def test_a_perfect_reconstruction_recovers_all_and_the_mean_nothing() -> None:
    x, labels = draw(300, 5) + 2, torch.arange(300) % 3
    for label in range(3):
        x[labels == label, label] += 4
    rewrites: dict[str, Callable[[Tensor], Tensor]] = {
        "clean": lambda rows: rows.clone(),  # a caller's name may be that of a run of our own
        "mean": lambda rows: x.mean(0).expand_as(rows),
        "worse": lambda rows: -rows,
    }
    found = splice_head(torch.eye(3, 5), torch.zeros(3), x, labels, rewrites, mean=x.mean(0))
    assert found["clean"].ce_recovered == pytest.approx(1, abs=1e-12)
    assert found["clean"].accuracy_recovered == 1
    assert found["clean"].spliced.kl == pytest.approx(0, abs=1e-12)
    assert found["mean"].ce_recovered == pytest.approx(0, abs=1e-12)
    assert found["mean"].accuracy_recovered == 0
    worse = found["worse"].ce_recovered
    assert worse is not None
    assert worse < 0


def test_where_ablation_costs_nothing_there_is_nothing_to_recover() -> None:
    same = Behaviour(1.0, 0.5, 0.0)
    splice = Splice(clean=same, spliced=same, mean=same, zero=same, n_images=4)
    assert (splice.ce_recovered, splice.accuracy_recovered) == (None, None)


def test_running_the_model_agrees_with_the_closed_form(
    digits_resnet: nn.Module, digits_test: digits.Split
) -> None:
    hooked = attach(digits_resnet.train())
    loader = list(digits.Split(digits_test.images[:60], digits_test.labels[:60]).batches(25))
    acts = record(hooked, loader, progress=False)
    x, labels = acts.tensor(), acts.labels()
    rewrites: dict[str, Callable[[Tensor], Tensor]] = {
        "noisy": lambda rows: rows * 0.6 + 0.1,
        "half": lambda rows: torch.cat([rows[:, :64], 0 * rows[:, 64:]], dim=1),
    }
    closed = splice_head(*hooked.unembed(), x, labels, rewrites, mean=x.mean(0))
    run = splice_images(hooked, acts.site, loader, rewrites, mean=x.mean(0))
    for name in rewrites:
        for part in ("clean", "spliced", "mean", "zero"):
            for number in ("cross_entropy", "accuracy", "kl"):
                expected = getattr(getattr(closed[name], part), number)
                assert getattr(getattr(run[name], part), number) == pytest.approx(
                    expected, rel=1e-4, abs=1e-6
                )
    assert digits_resnet.training
    assert not any(module._forward_pre_hooks for module in digits_resnet.modules())


@pytest.mark.parametrize("kind", ["map", "tokens"])
def test_a_hidden_site_is_rewritten_row_by_row(kind: str, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue("digits_resnet" if kind == "map" else "digits_vit")
    hooked = attach(network)
    site = hooked.attribution_site
    assert site is not None
    batch = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = [(batch, torch.arange(6))]
    mean = torch.zeros(site.width)
    rewrites: dict[str, Callable[[Tensor], Tensor]] = {
        "same": lambda rows: rows.clone(), "zero": torch.zeros_like,
    }  # fmt: skip
    found = splice_images(hooked, site, loader, rewrites, mean=mean)
    assert found["same"].spliced == found["same"].clean
    assert found["zero"].spliced == found["zero"].zero == found["zero"].mean
    assert found["zero"].spliced.kl > 0.01


def test_rows_go_back_to_where_they_came_from() -> None:
    layouts: dict[Any, tuple[int, ...]] = {
        "pooled": (2, 3), "tokens": (2, 5, 3), "nchw": (2, 3, 4, 5), "nhwc": (2, 4, 5, 3),
    }  # fmt: skip
    for layout, shape in layouts.items():
        site = Site("s", "", "out", layout, 3, prefix_tokens=1 if layout == "tokens" else 0)
        activation = draw(*shape)
        marked = replacing(site, lambda rows: rows * torch.tensor([1.0, 2.0, 3.0]))(activation)
        factors = torch.tensor([1.0, 2.0, 3.0]).view(
            [-1 if axis == site.channel_axis else 1 for axis in range(len(shape))]
        )
        expected = activation * factors
        if layout == "tokens":
            expected[:, 0] = activation[:, 0]  # the class token is no row of a recording
        assert torch.equal(marked, expected)


def test_what_cannot_be_spliced_is_refused() -> None:
    x, labels = draw(4, 3), torch.arange(4) % 2
    rewrites: dict[str, Callable[[Tensor], Tensor]] = {"nan": lambda rows: rows * math.nan}
    with pytest.raises(InputError, match=r"head of shape \(2, 4\) .* inputs \(4, 3\)"):
        splice_head(torch.ones(2, 4), torch.ones(2), x, labels, {}, mean=torch.zeros(3))
    with pytest.raises(InputError, match=r"inputs .* and 3 labels do not fit"):
        splice_head(torch.ones(2, 3), torch.ones(2), x, labels[:3], {}, mean=torch.zeros(3))
    with pytest.raises(InputError, match="logits hold 8 NaN"):
        splice_head(torch.ones(2, 3), torch.ones(2), x, labels, rewrites, mean=torch.zeros(3))
    with pytest.raises(InputError, match="5"):
        splice_head(torch.ones(2, 3), torch.ones(2), x, labels + 4, {}, mean=torch.zeros(3))
