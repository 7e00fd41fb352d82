"""The demo's measures, on the trained networks: recounted with the really edited network."""

from pathlib import Path

import pytest
import torch
from small_artifacts import altered

from salve_plugin.adapter import attach
from salve_plugin.control.change import change
from salve_plugin.control.edit import Edit
from salve_plugin.control.evaluate import evaluate
from salve_plugin.demo import digits
from salve_plugin.demo.crit_check import check_crit
from salve_plugin.demo.measures import Experiment, cross_class, enhance_class, suppress_class
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module", params=["resnet", "vit"])
def experiment(
    request: pytest.FixtureRequest, digits_train: digits.Split, digits_test: digits.Split
) -> Experiment:
    hooked = attach(digits.load(request.param, FIXTURES / f"digits_{request.param}.safetensors"))
    train, test = (
        record(hooked, split.loader(), progress=False) for split in (digits_train, digits_test)
    )
    dictionary = fit(train, "l1", seed=0)
    return Experiment(hooked, train, test, dictionary, profile(dictionary, train))


def _really(
    experiment: Experiment, edit: Edit, label: int, test: digits.Split
) -> tuple[float, float]:
    before = evaluate(experiment.hooked, test.batches())
    with edit.applied(experiment.hooked):
        effect = change(before, evaluate(experiment.hooked, test.batches()), label)
    return effect.target_after, effect.others_mean


def test_a_class_is_suppressed_on_named_rows_within_the_goal(
    experiment: Experiment, digits_test: digits.Split
) -> None:
    result = suppress_class(experiment, 3, seed=0)
    named = result.named_change
    assert named.target_after <= 0.05
    assert named.others_mean >= -0.01
    for choice, effect in ((result.named, named), (result.recipe, result.recipe_change)):
        target, others = _really(experiment, choice.edit, 3, digits_test)
        assert effect.target_after == target
        assert effect.others_mean == pytest.approx(others, abs=1e-12)
    assert result.recipe.edit.rows is None
    assert result.zero_row.target_before == named.target_before


def test_exact_strengths_survive_the_brute_force(
    experiment: Experiment, digits_test: digits.Split
) -> None:
    result = suppress_class(experiment, 4, seed=0)
    check = check_crit(experiment, result.recipe.edit, 4, digits_test.images)
    assert check.images > 30
    assert check.agree == check.images
    assert check.worst_residual <= 1e-6
    # Five images against all of them: the same head, in float32 through the network.
    assert check.really_left_at_linear == pytest.approx(check.left_at_linear, abs=0.1)


def test_brute_force_ends_where_strengths_are_no_longer_asked_about(
    experiment: Experiment, digits_test: digits.Split
) -> None:
    """Columns with almost no weight in the direction close at strengths beyond the limit."""
    edit = suppress_class(experiment, 4, seed=0).recipe.edit
    direction = edit.gate.directions[0].clone()
    direction[::2] *= 1e-6
    faint = altered(edit, direction=direction / direction.norm())
    check = check_crit(experiment, faint, 4, digits_test.images)
    assert check.finite < check.images
    assert check.agree == check.images


def test_enhancing_raises_the_confidence_of_the_class(experiment: Experiment) -> None:
    result = enhance_class(experiment, 3)
    assert result.confidence[1] > result.confidence[0]


def test_a_shared_latent_changes_more_than_one_class(experiment: Experiment) -> None:
    result = cross_class(experiment)
    assert result.classes[0] != result.classes[1]
    means = experiment.features.means[:, result.latent]
    shifts = (means - means.mean())[list(result.classes)]
    assert shifts[0].sign() == shifts[1].sign()
    assert cross_class(experiment, rank=1).latent != result.latent
    changed = torch.tensor(result.before) - torch.tensor(result.after)
    assert int((changed.abs() > 0.05).sum()) >= 2
