"""The Zipf law of latents, against its formula and brute force."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.discover.learners.zipf import places, under_used, zipf_law


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 40),
    st.floats(0, 2), st.floats(0, 5),
)  # fmt: skip
def test_places_add_up_and_fall_with_the_rank(
    latents: int, rows: int, k: int, exponent: float, shift: float
) -> None:
    total = min(k, latents) * rows
    found = places(latents, total, rows, exponent, shift).tolist()
    assert sum(found) == total
    assert found == sorted(found, reverse=True)
    assert max(found) <= rows
    assert min(found) >= (1 if total >= latents else 0)
    if exponent == 0:
        assert max(found) - min(found) <= 1


def test_a_zipf_law_is_what_its_formula_says() -> None:
    expected = [1 / (rank + 0.5) ** 1.5 for rank in range(1, 6)]
    total = sum(expected)
    torch.testing.assert_close(
        zipf_law(5, 1.5, 0.5), torch.tensor(expected, dtype=torch.float64) / total
    )


def test_latents_below_the_zipf_law_are_under_used_by_brute_force() -> None:
    density = torch.tensor([0.9, 0.05, 0.0, 0.5, 0.55])
    law = [1 / rank for rank in range(1, 6)]
    expected = [2 * each / sum(law) for each in law]  # .876 .438 .292 .219 .175
    order = sorted(range(5), key=lambda latent: -float(density[latent]))
    below = [False] * 5
    for rank, latent in enumerate(order):
        below[latent] = float(density[latent]) < min(1.0, expected[rank])
    assert below == [False, True, True, False, False]
    assert under_used(density, 2, 1.0, 0.0).tolist() == below
    assert not under_used(torch.zeros(5), 2, 1.0, 0.0).any()  # nothing is known yet
