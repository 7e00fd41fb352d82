"""Predicted and measured effects against the edited model, class by class."""

from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import pytest
import torch

import salve_plugin as salve
from salve_plugin.errors import InputError
from salve_plugin.validate.evidence.head import read_head
from salve_plugin.validate.evidence.predicted import (
    explained,
    gate_change,
    gate_shares,
    products_of,
)


@pytest.mark.parametrize("edited", [False, True])
def test_r2_and_slope_are_those_of_a_regression_on_the_edited_models_logits(
    known: Any, edited: bool
) -> None:
    hooked, dictionary, acts = known
    ones = torch.ones(hooked.site(acts.site.name).width, 1)
    update = salve.LowRankUpdate(torch.ones(3, 1), ones)
    present = salve.edit_at(hooked, acts.site.name, update)
    # A gate scales what the classifier was without the update.
    with present.applied(hooked) if edited else nullcontext():
        compare(hooked, dictionary, acts)


@pytest.mark.parametrize("mode", ["suppress", "enhance"])
def test_shares_are_those_of_the_change_laid_out(
    known: Any, mode: Literal["suppress", "enhance"]
) -> None:
    hooked, dictionary, acts = known
    head, x = read_head(hooked, dictionary, acts), acts.tensor().double()
    codes = dictionary.encode(acts.tensor()).double()
    for latent in (1, 7):
        gate = salve.Gate(dictionary.atoms[latent, None].detach(), 0.7, mode)
        direct = explained(gate_change(head, x, gate), codes, head.pull)
        assert bool((direct > 0).any())
        shares = gate_shares(head, x, products_of(head, x), gate, codes, head.pull)
        torch.testing.assert_close(shares, direct)
    nothing = salve.Gate(dictionary.atoms[1, None].detach(), 0.0)
    assert not gate_shares(head, x, products_of(head, x), nothing, codes, head.pull).any()


def test_images_of_every_class_are_compared_where_classes_come_in_turns(known: Any) -> None:
    hooked, dictionary, acts = known
    # Every third image is of one class: fifty evenly spaced ones would all be of class 0.
    assert set(acts.labels()[::3].tolist()) == {0}
    some = salve.predicted_effect(hooked, dictionary, acts, latents=[1], images=50)
    every = salve.predicted_effect(hooked, dictionary, acts, latents=[1])
    assert some.n_images == 50
    # The latent of class 1 is off in images of class 0, and a line through those says anything.
    torch.testing.assert_close(some.slope, every.slope, rtol=0.0, atol=0.5)


def compare(hooked: Any, dictionary: Any, acts: Any) -> None:
    result = salve.predicted_effect(hooked, dictionary, acts, latents=[1, 7], strength=0.7)
    x = acts.tensor()
    codes = dictionary.encode(x).double()
    for row, latent in enumerate([1, 7]):
        edit = salve.suppress(hooked, dictionary, latent=latent, strength=0.7)
        with torch.no_grad():
            measured = (edit.edited(hooked.model)(x) - hooked.model(x)).double().numpy()
            weight = hooked.model.fc.weight.double()
            predicted = -codes[:, latent, None] * (weight @ dictionary.atoms[latent].double())
        predicted = predicted.numpy()
        for label in range(3):
            slope, _ = np.polyfit(predicted[:, label], measured[:, label], 1)
            r = np.corrcoef(predicted[:, label], measured[:, label])[0, 1]
            assert float(result.slope[row, label]) == pytest.approx(slope, rel=1e-3, abs=1e-4)
            assert float(result.r2[row, label]) == pytest.approx(r * r, abs=1e-4)
        factor = (predicted * measured).sum() / (predicted**2).sum()
        left = ((measured - factor * predicted) ** 2).sum() / (measured**2).sum()
        assert float(result.explained[row]) == pytest.approx(1 - left, abs=1e-5)


def test_an_axis_is_predicted_exactly_and_other_latents_are_not(make_recorded: Any) -> None:
    """Of a feature itself the gate is the contribution, taken away by the strength's share."""
    random = torch.Generator().manual_seed(0)
    x = torch.rand(60, 8, generator=random)
    recorded = make_recorded(x, torch.arange(60) % 2)
    tensors = {
        "atoms": torch.eye(8), "encoder_weight": torch.eye(8),
        "encoder_bias": torch.zeros(8), "decoder_bias": torch.zeros(8),
    }  # fmt: skip
    dictionary = salve.Dictionary(tensors, salve.TopK(k=8), recorded.acts.site, {})
    result = salve.predicted_effect(recorded.hooked, dictionary, recorded.acts, strength=0.5)
    torch.testing.assert_close(result.r2, torch.ones(8, 2).double())
    torch.testing.assert_close(result.slope, torch.full((8, 2), 0.5).double())
    torch.testing.assert_close(result.explained, torch.ones(8).double())
    assert float(result.explained_null.max()) < 1 - 1e-3
    beyond = salve.predicted_effect(recorded.hooked, dictionary, recorded.acts, strength=1.0)
    torch.testing.assert_close(beyond.explained, result.explained)
    assert "explained" in result.table()
    assert "8 latents" in repr(result)
    assert "<table" in result._repr_html_()


def test_what_cannot_be_predicted_is_refused(known: Any, make_recorded: Any) -> None:
    hooked, dictionary, acts = known
    with pytest.raises(InputError, match="latents \\[16\\]"):
        salve.predicted_effect(hooked, dictionary, acts, latents=[0, 16])
    with pytest.raises(InputError, match=r"strength 0\.0"):
        salve.predicted_effect(hooked, dictionary, acts, strength=0.0)
    tokens = make_recorded(torch.rand(12, 3, 16), torch.arange(12) % 2)
    hidden = salve.Dictionary(dict(dictionary.state_dict()), salve.TopK(k=8), tokens.acts.site, {})
    with pytest.raises(InputError, match="the classifier reads"):
        salve.predicted_effect(tokens.hooked, hidden, tokens.acts)
