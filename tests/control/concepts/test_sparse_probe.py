"""Forward selection against brute force, and stability on planted latents."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import OrthogonalMatchingPursuit

from salve_plugin.control.concepts import sparse_probe
from salve_plugin.control.concepts.sparse_probe import forward_selection, stable_selection
from salve_plugin.control.erasers import JointMoments
from salve_plugin.errors import InputError


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_selects_what_orthogonal_matching_pursuit_does(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randn(80, 12, generator=draw).double() * torch.arange(1, 13)
    target = codes[:, [2, 7]].sum(1) + torch.randn(80, generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_probe, "RIDGE", 0.0)
        latents, weights = forward_selection(JointMoments.of([(codes, target[:, None])]), count)
    centred = (codes - codes.mean(0)).numpy()
    scaled = centred / centred.std(0)
    reference = OrthogonalMatchingPursuit(n_nonzero_coefs=count, fit_intercept=False)
    reference.fit(scaled, (target - target.mean()).numpy())
    assert sorted(latents.tolist()) == np.flatnonzero(reference.coef_).tolist()
    ours = torch.zeros(12).double().index_copy(0, latents, weights)
    expected = torch.from_numpy(reference.coef_ / centred.std(0))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_latents_that_never_vary_are_not_taken() -> None:
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    codes[:, 1:] = 1.0
    latents, _ = forward_selection(JointMoments.of([(codes, codes[:, :1])]), 3)
    assert latents.tolist() == [0]


@pytest.mark.parametrize("varies", [False, True])
def test_codes_that_do_not_go_with_the_concept_are_refused(varies: bool) -> None:
    codes = torch.zeros(16, 3).double()
    codes[::2, 0] = float(varies)
    target = (torch.arange(16) // 2 % 2).double()  # half of either kind have the code
    blocks = JointMoments.of_blocks([(codes, target[:, None], torch.arange(16) // 8)], 2)
    with pytest.raises(InputError, match="none of 3 latents has a code that varies with the"):
        stable_selection(blocks, 2)


def test_a_stable_selection_finds_the_planted_latents_and_says_how_often() -> None:
    draw = torch.Generator().manual_seed(1)
    codes = torch.randn(400, 30, generator=draw).double()
    target = codes[:, 3] + codes[:, 11] + 0.5 * torch.randn(400, generator=draw)
    block = torch.arange(400) % 8
    blocks = JointMoments.of_blocks([(codes, target[:, None], block)], 8)
    latents, weights, stability = stable_selection(blocks, 2)
    assert sorted(latents.tolist()) == [3, 11]
    assert stability.tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(weights, torch.ones(2).double(), rtol=0.1, atol=0)
    _, _, more = stable_selection(blocks, 6)
    assert float(more.min()) < 1  # the four others are luck, and it shows
