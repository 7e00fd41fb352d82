"""TCAV through Captum: a concept that the class needs stands out, random images do not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site
from salve_plugin.validate.evidence.concept_scores import _Direction


class Bright(nn.Module):
    """Class 1 is for a bright left half, beyond a nonlinearity; the right half does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((1, 2))
        self.act = nn.Tanh()
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
            self.fc.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc(self.act(self.pool(x).flatten(1)))
        return result


@pytest.fixture
def hooked() -> HookedModel:
    sites = [
        Site("pool.hook_out", "pool", "out", "nchw", 1),
        Site("unembed.hook_in", "fc", "in", "pooled", 2, readers=("fc",)),
    ]
    return HookedModel(Bright(), sites, attribution_site=None, description={"name": "bright"})


def draw(count: int, seed: int) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_concept_that_the_class_needs_stands_out_and_another_does_not(hooked: Any) -> None:
    bright, dark = draw(12, 1), draw(12, 2)
    bright[..., :2] += 2
    dark[..., :2] -= 2
    before = {name: tensor.clone() for name, tensor in hooked.model.state_dict().items()}
    hooked.model.train()
    given = {"bright": bright, "dark": dark}
    others, images = draw(48, 4), draw(10, 5)
    result = salve.tcav(hooked, "pool.hook_out", given, others, images, target=1, sets=4)
    assert result.scores["bright"] == 1
    assert result.scores["dark"] == 0
    assert result.p["bright"] <= 2 / 5
    alone = salve.tcav(hooked, "pool.hook_out", {"dark": dark}, others, images, target=1, sets=4)
    assert alone.scores["dark"] == result.scores["dark"]
    assert alone.p["dark"] == result.p["dark"] == alone.p_all["dark"]
    assert hooked.model.training
    assert all(torch.equal(before[k], v) for k, v in hooked.model.state_dict().items())
    assert "'bright' 1.00" in repr(result)
    assert "0.5 ±" in str(result)


def test_random_examples_are_as_far_from_a_half_as_random_sets(hooked: Any) -> None:
    p = []
    for seed in range(8):
        given = {"nothing": draw(6, 100 + seed)}
        args = (draw(24, 200 + seed), draw(4, 300 + seed))
        p.append(salve.tcav(hooked, "pool.hook_out", given, *args, target=1, sets=4).p["nothing"])
    shares = torch.tensor(p)
    assert float((shares <= 0.2).double().mean()) <= 0.5
    assert float(shares.min()) >= 0.2 - 1e-9


def test_the_unit_of_the_activations_does_not_matter() -> None:
    rows, ids = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    told = []
    for unit in (1.0, 2.0**-60, 2.0**60):
        direction = _Direction()
        direction.train_and_eval([(unit * rows, ids)])
        told.append(direction.weights())
    assert bool(told[0].any())
    torch.testing.assert_close(told[1], told[0])
    torch.testing.assert_close(told[2], told[0])


def test_too_few_images_are_refused(hooked: Any) -> None:
    for concepts, random, count in (
        ({}, draw(9, 0), 1),
        ({"one": draw(1, 0)}, draw(9, 0), 1),
        ({"many": draw(6, 0)}, draw(9, 0), 1),
        ({"few": draw(2, 0)}, draw(9, 0), 0),
    ):
        with pytest.raises(InputError, match="expected at least two examples"):
            salve.tcav(hooked, "pool.hook_out", concepts, random, draw(count, 1), target=1)


@pytest.mark.parametrize("target", [-1, 2])
def test_a_class_that_the_model_has_not_is_refused(hooked: Any, target: int) -> None:
    with pytest.raises(InputError, match=f"no class {target}; the model has 2"):
        salve.tcav(
            hooked, "pool.hook_out", {"one": draw(2, 0)}, draw(4, 1), draw(1, 2), target=target,
            sets=2,
        )  # fmt: skip


def test_it_takes_no_chance_from_elsewhere_and_is_the_same_in_inference_mode(hooked: Any) -> None:
    concepts, others, images = {"some": draw(4, 1)}, draw(8, 2), draw(6, 3)
    chance = torch.random.get_rng_state()
    first = salve.tcav(hooked, "pool.hook_out", concepts, others, images, target=1, sets=2)
    assert torch.equal(chance, torch.random.get_rng_state())
    with torch.inference_mode():
        made = {"some": draw(4, 1)}, draw(8, 2), draw(6, 3)
        within = salve.tcav(hooked, "pool.hook_out", *made, target=1, sets=2)
    after = salve.tcav(hooked, "pool.hook_out", *made, target=1, sets=2)
    assert first.scores == within.scores == after.scores
