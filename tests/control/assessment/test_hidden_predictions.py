"""What codes predict of a hidden edit, against autograd's derivative and a plain recount."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin import Dictionary, Edit, HookedModel, Site
from salve_plugin.control.assessment.hidden_predictions import Gradient
from salve_plugin.control.assessment.image_sample import ImageSample
from salve_plugin.control.assessment.outcomes import MOST_RUN
from salve_plugin.control.assessment.predictions import other_latents
from salve_plugin.control.assessment.reassess import reassess
from salve_plugin.demo import digits
from salve_plugin.share.card_assessment import assessment_section

SITE = Site("hidden", "act", "out", "nchw", 5, readers=("mix",))


class Small(nn.Module):
    """A hidden layer at four by four positions; what lies behind it may not be all float64."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self.behind = behind
        self.first, self.act = nn.Conv2d(1, 5, 1), nn.Tanh()
        self.mix, self.head = nn.Conv2d(5, 7, 3), nn.Linear(7, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.sigmoid(self.mix(self.act(self.first(images)))).mean((2, 3))
        if self.behind != "exact":
            x = x.float()
        logits: Tensor = self.head(x if self.behind == "refuses" else x.to(images.dtype))
        return logits


def small(behind: str = "exact") -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small(behind).eval()
    return HookedModel(
        model, [SITE], attribution_site=None, heads={}, description={"family": "test"},
        probe=images_of(2),
    )  # fmt: skip


def images_of(count: int) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def batches_of(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    labels = torch.arange(count) % 4
    return list(zip(torch.split(images_of(count), size), torch.split(labels, size), strict=True))


def of_autograd(
    hooked: HookedModel, edit: Edit, dictionary: Dictionary, latents: Any, images: Tensor
) -> Tensor:
    """Return the derivative in float64 by how much of the contribution is taken away."""
    model = edit.edited(hooked.model)
    edit.revert_(model)  # a copy as it was
    model.double()
    images, site = images.double(), hooked.site(edit.site.name)
    with salve.hooks.reading(model, [site]) as seen, torch.no_grad():
        model(images)
    prefix = site.prefix_tokens
    x = seen[site.name].movedim(site.channel_axis, -1)
    codes = dictionary.encode(x.reshape(-1, site.width).float()).double()
    change = -(codes[:, latents] @ dictionary.atoms[latents].double()).view(x.shape)
    if prefix:  # no dictionary reads these tokens
        change[:, :prefix] = 0
    change = change.movedim(-1, site.channel_axis)
    amount = torch.zeros(len(images), dtype=torch.float64, requires_grad=True)
    shaped = amount.view(-1, *[1] * (change.ndim - 1))

    def linear(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        added: Tensor = module.forward(inputs[0] + shaped * change)
        assert edit.rows is not None
        kept = torch.zeros(output.shape[1], dtype=torch.float64)
        kept[list(edit.rows)] = 1
        return output + (added - output) * kept[:, None, None]

    if edit.rows is None:
        with salve.hooks.tapped(model, site, lambda activation: activation + shaped * change):
            logits = model(images)
    else:
        for reader in site.readers:
            model.get_submodule(reader).register_forward_hook(linear)
        logits = model(images)
    slopes = [
        torch.autograd.grad(logits[:, label].sum(), amount, retain_graph=True)[0]
        for label in range(logits.shape[1])
    ]
    return torch.stack(slopes, 1)


@pytest.mark.parametrize(("network", "rows"), [("small", None), ("small", [0, 3]), ("vit", None)])
def test_the_quotient_is_the_gradient_times_the_contribution(
    vit: HookedModel, digits_test: digits.Split, make_dictionary: Callable[..., Dictionary],
    network: str, rows: list[int] | None,
) -> None:  # fmt: skip
    hooked, images = (
        (small(), images_of(5)) if network == "small" else (vit, digits_test.images[:5])
    )
    site = hooked.site("hidden" if network == "small" else "blocks.1.mlp.hook_post")
    dictionary = make_dictionary(site, 12)
    edit = salve.suppress(hooked, dictionary, latent=[3, 7], strength=1.0, rows=rows)
    gradient = Gradient(hooked.model, site, dictionary, [(3, 7)], images)
    for latents in ([3], [3, 7]):
        found = gradient.along(edit, latents)
        expected = of_autograd(hooked, edit, dictionary, latents, images)
        assert float(expected.norm()) > 1e-3
        assert float((found - expected).norm() / expected.norm()) < 1e-5
    added = salve.enhance(hooked, dictionary, latent=[3, 7], strength=1.0, rows=rows)
    assert torch.allclose(gradient.along(added, [3, 7]), -found, rtol=1e-3, atol=1e-6)


def test_every_number_is_that_of_a_plain_recount_in_batches_of_any_size(
    make_dictionary: Callable[..., Dictionary],
) -> None:
    hooked, dictionary = small(), make_dictionary(SITE, 12)
    edit = salve.suppress(hooked, dictionary, latent=[3, 7], strength=1.0)
    several = [
        salve.assess(
            hooked, edit, batches_of(MOST_RUN, size), target=1, dictionary=dictionary, seed=4
        )
        for size in (MOST_RUN, 7)
    ]
    assert several[0].reach == "hidden"
    found = several[0].predictions
    assert found == several[1].predictions
    images = images_of(MOST_RUN)
    with torch.no_grad():
        change = edit.edited(hooked.model).double()(images.double())
        change = (change - small().model.double()(images.double())).numpy()

    def share(latents: Any) -> float:
        ours = of_autograd(hooked, edit, dictionary, list(latents), images).numpy()
        factor = (ours * change).sum() / (ours**2).sum()
        return float(1 - ((change - factor * ours) ** 2).sum() / (change**2).sum())

    assert [each.latents for each in found] == [(3,), (7,), (3, 7)]
    for each in found:
        assert each.explained == pytest.approx(share(each.latents), abs=1e-5)
        first = each.latents if len(each.latents) > 1 else (3,)
        others = [share(one) for one in other_latents(first, (3, 7), 12, 4)]
        highest = np.quantile(others, 0.95, method="higher")
        assert each.explained_null == pytest.approx(highest, abs=1e-5)
        ours = of_autograd(hooked, edit, dictionary, list(each.latents), images)[:, 1].numpy()
        assert each.r2 == pytest.approx(np.corrcoef(ours, change[:, 1])[0, 1] ** 2, abs=1e-5)
        assert each.slope == pytest.approx(np.polyfit(ours, change[:, 1], 1)[0], rel=1e-4)
    again = reassess(hooked, edit, several[0], batches_of(MOST_RUN, 3), dictionary)
    assert salve.deviations(several[0], again) == []
    assert salve.EditArtifact(edit, assessment=several[0]).assessment == several[0]
    card = assessment_section(several[0].to_json())
    assert "(to first order, on at most 16 images): the codes of latents 3, 7" in card
    weak = salve.suppress(hooked, dictionary, latent=3, strength=0.0)
    (none,) = salve.assess(
        hooked, weak, batches_of(MOST_RUN, MOST_RUN), dictionary=dictionary
    ).predictions
    assert (none.explained, none.r2, none.holds) == (0.0, None, False)


@pytest.mark.parametrize("behind", ["rounds", "refuses"])
def test_where_float64_does_not_get_through_nothing_is_said(
    make_dictionary: Callable[..., Dictionary], behind: str
) -> None:
    dictionary = make_dictionary(SITE, 12)
    edit = salve.suppress(small(), dictionary, latent=3, strength=1.0)
    assert salve.assess(small(), edit, batches_of(8, 8), dictionary=dictionary).predictions
    data = batches_of(8, 8)
    assert salve.assess(small(behind), edit, data, dictionary=dictionary).predictions == ()
    other = make_dictionary(SITE, 12, seed=1)
    assert salve.assess(small(), edit, batches_of(8, 8), dictionary=other).predictions == ()
    assert salve.assess(small(), edit, batches_of(8, 8)).predictions == ()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 100), st.integers(1, 40), st.integers(0, 5))
def test_a_sample_does_not_depend_on_the_batches(count: int, size: int, seed: int) -> None:
    stream = torch.arange(count, dtype=torch.float64)[:, None]
    samples = []
    for step in (count, size):
        sample = ImageSample(seed)
        for some in torch.split(stream, step):
            sample.add(some)
        sample.add(torch.zeros(1, 2))  # of another shape
        samples.append(sample.images[:, 0].tolist())
    assert samples[0] == samples[1] == sorted(set(samples[0]))
    assert len(samples[0]) == min(count, MOST_RUN)


def test_every_image_is_as_likely_to_be_in_a_sample() -> None:
    hits = torch.zeros(3 * MOST_RUN)
    for seed in range(200):
        sample = ImageSample(seed)
        sample.add(torch.arange(len(hits))[:, None])
        hits[sample.images[:, 0]] += 1
    # Binomial with p = 1/3: five standard deviations are a third of its mean of 66.7.
    assert bool(((hits - 200 / 3).abs() < 5 * (200 * 2 / 9) ** 0.5).all())
