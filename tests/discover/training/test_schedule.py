"""The learning rate's course, and control of L0."""

import pytest

from salve_plugin.discover.training.schedule import L0Control, decay_start, rate_share


def test_the_rate_rises_for_a_twentieth_stays_and_falls_over_the_last_fifth() -> None:
    shares = [rate_share(step, 100, decay_start(100)) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5:80] == [1.0] * 75
    assert shares[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_move_at_all(steps: int) -> None:
    assert all(0 < rate_share(s, steps, decay_start(steps)) <= 1 for s in range(steps))


def test_control_brings_a_codes_l0_to_its_target_from_either_side() -> None:
    """A code whose L0 is 50 / weight: the weight must come to 50 / target."""
    for target in (5.0, 200.0):
        control = L0Control(target)
        for step in range(1500):
            control.observe(50 / control.weight, (step + 1) / 1500)
        assert control.weight == pytest.approx(50 / target, rel=0.02)


def test_without_a_target_and_in_the_first_tenth_the_weight_stays() -> None:
    for control, progress in ((L0Control(None), 0.9), (L0Control(3.0), 0.05)):
        control.observe(100.0, progress)
        assert control.weight == 1.0
