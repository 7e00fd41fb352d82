"""Quantus' metrics take Grad-FAM maps, called as they call any explanation."""

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from numpy.typing import NDArray
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.demo import digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Quantus and what it imports, not ours
]


@pytest.fixture
def explained(digits_resnet: nn.Module, digits_test: digits.Split) -> Any:
    """A network, ten images of it with their classes, and a function that explains classes."""
    quantus = pytest.importorskip("quantus", reason="pip install 'salve-plugin[quantus]'")
    hooked = salve.attach(digits_resnet)
    few = digits.Split(digits_test.images[:200], digits_test.labels[:200])
    acts = salve.record(hooked, few.batches(), progress=False)
    dictionary = salve.fit(acts, n_latents=32, steps=200)
    features = salve.profile(dictionary, acts)
    latents = torch.tensor([features.ranked(label, 1)[0] for label in range(10)])
    fam = salve.LayerGradFam.of(hooked, dictionary)

    def explain(
        model: nn.Module, inputs: NDArray[Any], targets: NDArray[Any], **_: Any
    ) -> NDArray[Any]:
        assert model is hooked.model
        images = torch.as_tensor(inputs, dtype=torch.float32)
        heat = fam.attribute(images, target=latents[torch.as_tensor(targets).long()])
        shown: Tensor = LayerAttribution.interpolate(heat, images.shape[2:], "bilinear")
        return shown.numpy()

    x, y = few.images[:10].numpy(), few.labels[:10].numpy()
    return quantus, hooked.model, x, y, explain


def test_pixel_flipping_sparseness_and_pointing_run_on_maps_of_latents(explained: Any) -> None:
    quantus, model, x, y, explain = explained
    given = {"model": model, "x_batch": x, "y_batch": y, "explain_func": explain, "device": "cpu"}
    quiet: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
    curves = np.asarray(
        quantus.PixelFlipping(features_in_step=32 * 4, perturb_baseline="black", **quiet)(**given)
    )
    assert curves.shape == (10, 8)
    assert np.isfinite(curves).all()
    assert curves[:, -1].mean() < curves[:, 0].mean()
    sparseness = np.asarray(quantus.Sparseness(**quiet)(**given))
    assert sparseness.shape == (10,)
    assert ((sparseness >= 0) & (sparseness <= 1)).all()
    # The left half, as an object: hit where the largest value of the map is.
    half = np.zeros_like(x, dtype=bool)
    half[..., :16] = True
    pointing = quantus.PointingGame(**quiet)(**given, s_batch=half)
    heat = explain(model, x, y)
    highest = heat.reshape(10, -1).argmax(1) % 32
    assert list(map(bool, pointing)) == (highest < 16).tolist()
