"""The monosemanticity score against a loop over pairs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.monosemanticity import mean_cosine, monosemanticity


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_pairs(code: Tensor, embeddings: Tensor) -> float:
    """Return the score of one latent as the paper writes it."""
    a = (code.double() - code.double().min()) / (code.double().max() - code.double().min())
    e = embeddings.double()
    top = bottom = 0.0
    for i in range(len(a)):
        for j in range(i):
            weight = float(a[i] * a[j])
            top += weight * float(e[i] @ e[j] / e[i].norm() / e[j].norm())
            bottom += weight
    return top / bottom


@given(seed=st.integers(0, 100), images=st.integers(3, 12))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_it_is_the_weighted_mean_over_pairs(seed: int, images: int) -> None:
    codes, embeddings = draw(images, 3, seed=seed), draw(images, 4, seed=seed + 1)
    expected = [by_pairs(codes[:, latent], embeddings) for latent in range(3)]
    assert monosemanticity(codes, embeddings).tolist() == pytest.approx(expected, rel=1e-6)
    order = torch.tensor([2, 0, 1])
    assert monosemanticity(codes[:, order], embeddings).tolist() == pytest.approx(
        [expected[i] for i in order], rel=1e-6
    )
    moved = monosemanticity(5 * codes - 3, 7 * embeddings)
    assert moved.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_latent_that_fires_only_on_duplicates_scores_one() -> None:
    embeddings = draw(30, 5, seed=0)
    embeddings[10:15] = embeddings[10] * torch.arange(1, 6)[:, None]  # of any length
    codes = torch.zeros(30, 2)
    codes[10:15, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0])
    codes[:, 1] = torch.rand(30, generator=torch.Generator().manual_seed(1))
    one, other = monosemanticity(codes, embeddings).tolist()
    assert one == pytest.approx(1)
    assert other < 0.5


def test_an_indifferent_latent_scores_the_mean_cosine() -> None:
    embeddings = draw(400, 5, seed=0) + 1
    codes = torch.rand(400, 50, generator=torch.Generator().manual_seed(1))
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    pairs = (unit @ unit.T)[torch.ones(400, 400).triu(1).bool()]
    assert mean_cosine(embeddings) == pytest.approx(float(pairs.mean()))
    assert float(monosemanticity(codes, embeddings).mean()) == pytest.approx(
        mean_cosine(embeddings), abs=0.01
    )


def test_latents_without_a_pair_have_no_score() -> None:
    codes = torch.zeros(10, 3)
    codes[4, 1] = 1  # active in one image
    codes[:2, 2] = 1
    scores = monosemanticity(codes, draw(10, 4, seed=0))
    assert scores.isnan().tolist() == [True, True, False]


def test_many_latents_are_scored_as_few_are() -> None:
    codes, embeddings = draw(20, 700, seed=0), draw(20, 4, seed=1)
    scores = monosemanticity(codes, embeddings)
    torch.testing.assert_close(scores[600:], monosemanticity(codes[:, 600:], embeddings))


def test_embeddings_that_do_not_fit_are_refused() -> None:
    codes = torch.rand(3, 2)
    with pytest.raises(InputError, match="4 embeddings for 3 images"):
        monosemanticity(codes, torch.ones(4, 2))
    with pytest.raises(InputError, match="embeddings hold 2 NaN"):
        monosemanticity(codes, torch.tensor([[1.0, 1.0], [math.nan, math.inf], [1.0, 0.0]]))
    with pytest.raises(InputError, match="embedding of image 1 is zero"):
        monosemanticity(codes, torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(InputError, match="1 embeddings make no pair"):
        mean_cosine(torch.ones(1, 2))
