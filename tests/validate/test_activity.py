"""What latents do on a recording, against sorting and counting all codes in memory."""

from pathlib import Path

import pytest
import torch

import salve_plugin as salve
from salve_plugin.demo import digits
from salve_plugin.validate.activity import BINS, activity

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.mark.parametrize("site", ["unembed.hook_in", "blocks.2.hook_resid_post"])
def test_activity_is_what_all_codes_say(site: str, digits_train: digits.Split) -> None:
    hooked = salve.attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    part = digits.Split(digits_train.images[:90], digits_train.labels[:90])
    # 7 images a batch: with several rows an image, blocks of 1024 end inside one.
    acts = salve.record(hooked, list(part.batches(7)), site, progress=False)
    dictionary = salve.fit(acts, "itda", n_latents=32)
    active = activity(dictionary, acts, top=5)
    x = acts.tensor()
    codes = dictionary.encode(x)
    by_image = codes.view(90, -1, 32)
    signed = by_image * active.signs
    strongest = signed.amax(1)
    values, order = strongest.sort(dim=0, descending=True, stable=True)
    assert torch.equal(active.top_images, order[:5].T)
    assert torch.equal(active.top_codes, (values[:5] * active.signs).T)
    assert torch.equal(active.least, codes.amin(0))
    assert torch.equal(active.most, codes.amax(0))
    assert torch.equal(active.counts.sum(1), torch.full((32,), 90))
    assert torch.equal(active.signs < 0, -codes.amin(0) > codes.amax(0))
    scale = (x.double() - x.double().mean(0)).square().sum(1).mean().sqrt()
    expected = (codes.abs() > 0.01 * scale).double().mean(0)
    torch.testing.assert_close(active.density, expected)
    middle = (active.least + active.most) / 2
    upper = (strongest * active.signs > middle).sum(0)
    # A code at the very middle may fall to either side by rounding.
    assert int((active.counts[:, BINS // 2 :].sum(1) - upper).abs().max()) <= 1
