"""Which rows are measured on, and those that are refused."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salve_plugin.discover.training.rows import Moments, RowReader, held_out
from salve_plugin.errors import InputError
from salve_plugin.validate.held_out import HeldOut


def test_rows_are_those_of_held_out_images_with_their_labels(
    make_recorded: Callable[..., Any], make_planted: Callable[..., Any]
) -> None:
    planted = make_planted(rows=95)
    acts = make_recorded(planted.x, planted.labels).acts
    data = HeldOut.of(acts)
    apart = held_out(torch.arange(95))
    assert torch.equal(data.x, planted.x[apart])
    assert torch.equal(data.labels, planted.labels[apart])
    assert torch.equal(data.chosen, apart.nonzero().flatten())
    assert torch.equal(data.images, torch.arange(int(apart.sum())))
    assert data.n_images == data.n_held_out == len(data.x)
    moments = Moments.of(RowReader(acts, None))
    torch.testing.assert_close(data.mean, planted.x[~apart].mean(0))
    assert data.scale == moments.scale
    ours = {tuple(row) for row in data.fit_x.tolist()}
    assert ours == {tuple(row) for row in planted.x[~apart].tolist()}


def test_many_rows_are_thinned_by_whole_images(make_recorded: Callable[..., Any]) -> None:
    x = torch.randn(200, 5, 3, generator=torch.Generator().manual_seed(0))
    acts = make_recorded(x, torch.arange(200) % 4).acts
    everyone = held_out(torch.arange(200)).nonzero().flatten()
    data = HeldOut.of(acts, max_rows=30)  # of about 20 images with 4 patches each
    assert data.n_held_out == len(everyone)
    assert torch.equal(data.chosen, everyone[::3])
    assert torch.equal(data.x, x[data.chosen, 1:].reshape(-1, 3))
    assert torch.equal(data.images, torch.arange(data.n_images).repeat_interleave(4))
    assert torch.equal(data.labels, data.chosen % 4)
    assert len(data.x) <= 30


def test_large_dictionaries_are_measured_on_fewer_images(make_recorded: Callable[..., Any]) -> None:
    """Codes of each image are in memory: 8192 latents of 65 536 images would take 2 GB a copy."""
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    acts = make_recorded(x, torch.arange(200) % 4).acts
    everyone = held_out(torch.arange(200)).nonzero().flatten()
    for n_latents, share in ((10, 1), (50, 2), (10_000, len(everyone))):
        data = HeldOut.of(acts, n_latents=n_latents, max_codes=500)
        assert torch.equal(data.chosen, everyone[::share])
        assert data.n_images * n_latents <= max(500, n_latents)


def test_a_recording_without_held_out_images_is_refused(
    make_recorded: Callable[..., Any], make_planted: Callable[..., Any]
) -> None:
    planted = make_planted(rows=8)
    acts = make_recorded(planted.x, planted.labels).acts
    with pytest.raises(InputError, match="none of the recording's 8 images is held out"):
        HeldOut.of(acts)


@pytest.mark.parametrize("image", [8, 9])
def test_a_nan_in_a_shard_is_refused_wherever_it_is(
    image: int, make_recorded: Callable[..., Any], make_planted: Callable[..., Any]
) -> None:
    """Image 8 is held out, image 9 is trained on."""
    planted = make_planted(rows=40)
    acts = make_recorded(planted.x, planted.labels).acts
    (shard,) = acts.folder.glob("*.safetensors")
    stored = load_file(shard)
    stored["activations"][image, 3] = math.nan
    save_file(stored, shard, metadata={"format": "pt"})
    with pytest.raises(InputError, match="NaN or infinite"):
        HeldOut.of(acts)
