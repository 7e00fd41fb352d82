"""Checks of hyper-parameters: what passes, and what the refusals say."""

import pytest

from salve_plugin.discover.learners.checks import above, at_least, at_least_one, between, fits
from salve_plugin.errors import InputError

NOT_NUMBERS = [float("nan"), float("inf"), -float("inf"), "0.5", None, True]


def test_values_at_the_bounds_pass() -> None:
    at_least(0, weight=0)
    above(0, width=1e-9)
    between(0, 1, share=0, other=1.0)
    at_least_one(k=1)
    fits(4, 4)


@pytest.mark.parametrize("value", [-1e-9, *NOT_NUMBERS])
def test_less_than_a_bound_or_no_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"weight must be a finite number of at least 0, got"):
        at_least(0, ok=1.0, weight=value)


@pytest.mark.parametrize("value", [0, -1.0, *NOT_NUMBERS])
def test_what_must_be_above_a_bound_is_refused_at_it(value: object) -> None:
    with pytest.raises(InputError, match=r"width must be a finite number above 0, got"):
        above(0, width=value)


@pytest.mark.parametrize("value", [-0.01, 1.01, *NOT_NUMBERS])
def test_what_lies_outside_of_two_bounds_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"share must lie between 0 and 1, got"):
        between(0, 1, share=value)


@pytest.mark.parametrize("value", [0, -3, 2.0, *NOT_NUMBERS])
def test_what_is_not_a_count_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"k must be a whole number of at least 1, got"):
        at_least_one(k=value)


def test_more_active_latents_than_there_are_is_refused_with_what_would_fit() -> None:
    with pytest.raises(InputError, match=r"k = 5 .* dictionary of 4; choose k of at most 4"):
        fits(5, 4)
