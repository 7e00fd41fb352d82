"""What codes predict of an edit, against a plain recount; what contradicts itself is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_artifacts import small_assessment, small_edit

import salve_plugin as salve
from salve_plugin import Activations, Dictionary, Edit, HookedModel
from salve_plugin.control.assessment.batches import Batch, Head
from salve_plugin.control.assessment.changes import Changes
from salve_plugin.control.assessment.outcomes import Budget, Prediction
from salve_plugin.control.assessment.predictions import Predictions, other_latents
from salve_plugin.control.assessment.tables import prediction_lines
from salve_plugin.demo import digits
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.errors import InputError
from salve_plugin.share.card_assessment import assessment_section


def all_rows(hooked: HookedModel, atoms: Dictionary) -> tuple[Edit, float]:
    return salve.suppress(hooked, atoms, latent=2, strength=6.0), -1.0


def two_latents(hooked: HookedModel, atoms: Dictionary) -> tuple[Edit, float]:
    return salve.suppress(hooked, atoms, latent=[5, 2], strength=9.0, rows=[3, 7]), -1.0


def enhanced(hooked: HookedModel, atoms: Dictionary) -> tuple[Edit, float]:
    return salve.enhance(hooked, atoms, latent=2, strength=4.0, rows=[3]), 1.0


@pytest.mark.parametrize(
    ("make", "recorded"),
    [(all_rows, True), (two_latents, True), (enhanced, True), (two_latents, False)],
)
def test_every_number_is_that_of_a_plain_recount(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split,
    make: Any, recorded: bool,
) -> None:  # fmt: skip
    edit, sign = make(resnet, atoms)
    rows = list(range(10)) if edit.rows is None else list(edit.rows)
    weight = resnet.unembed()[0].double().numpy()[rows]
    with edit.applied(resnet):
        edited = resnet.unembed()[0].double().numpy()[rows]
    change = acts.tensor().double().numpy() @ (edited - weight).T
    codes = atoms.encode(acts.tensor()).double().numpy()
    vectors = atoms.atoms.double().numpy()

    def predicted(latents: Any) -> Any:
        kept = list(latents)
        return sign * codes[:, kept] @ vectors[kept] @ weight.T

    def share(latents: Any) -> float:
        ours = predicted(latents)
        factor = (ours * change).sum() / (ours**2).sum()
        return float(1 - ((change - factor * ours) ** 2).sum() / (change**2).sum())

    data = acts if recorded else digits_test.batches()
    found = salve.assess(resnet, edit, data, target=3, dictionary=atoms, seed=4).predictions
    own = edit.latents
    assert [each.latents for each in found] == [(one,) for one in own] + [own] * (len(own) > 1)
    for each in found:
        assert each.explained == pytest.approx(share(each.latents), abs=1e-4)
        others = [share(one) for one in other_latents(each.latents, own, 16, 4)]
        assert each.explained_null == pytest.approx(
            np.quantile(others, 0.95, method="higher"), abs=1e-4
        )
        x, y = predicted(each.latents)[:, rows.index(3)], change[:, rows.index(3)]
        assert each.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-4)
        assert each.slope == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-3, abs=1e-4)


def test_of_one_latent_they_are_those_of_predicted_effect(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=0.5)
    (found,) = salve.assess(resnet, edit, acts, target=3, dictionary=atoms, seed=1).predictions
    effect = salve.predicted_effect(resnet, atoms, acts, latents=[2], strength=0.5, seed=1)
    assert found.explained == pytest.approx(float(effect.explained[0]), rel=1e-6)
    assert found.explained_null == pytest.approx(float(effect.explained_null[0]), rel=1e-6)
    assert found.r2 == pytest.approx(float(effect.r2[0, 3]), rel=1e-5)
    assert found.slope == pytest.approx(float(effect.slope[0, 3]), rel=1e-5)


def test_without_a_target_its_row_or_the_edits_dictionary_less_is_said(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=6.0, rows=[3])
    for target in (None, 4):
        (found,) = salve.assess(resnet, edit, acts, target=target, dictionary=atoms).predictions
        assert (found.r2, found.slope) == (None, None)
    assert salve.assess(resnet, edit, acts, target=3).predictions == ()
    other = Dictionary(
        {**dict(atoms.state_dict()), "atoms": atoms.atoms.flip(0)}, L1(), atoms.site, {}
    )
    assert salve.assess(resnet, edit, acts, target=3, dictionary=other).predictions == ()
    given = salve.edit_at(resnet, "unembed.hook_in", salve.Gate(atoms.atoms[:1], 2.0))
    assert salve.assess(resnet, given, acts, target=3, dictionary=atoms).predictions == ()
    none = salve.suppress(resnet, atoms, latent=2, strength=0.0)
    (found,) = salve.assess(resnet, none, acts, target=3, dictionary=atoms).predictions
    assert (found.explained, found.explained_null, found.r2) == (0.0, 0.0, None)
    assert not found.holds


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 17), st.integers(1, 3))
def test_pieces_of_any_size_give_the_same_shares_between_0_and_1(
    seed: int, images: int, size: int, n_own: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.rand(images, 6, generator=draw)
    tensors = {
        "atoms": torch.nn.functional.normalize(torch.randn(9, 6, generator=draw), dim=1),
        "encoder_weight": torch.randn(9, 6, generator=draw),
        "encoder_bias": torch.zeros(9), "decoder_bias": torch.zeros(6),
    }  # fmt: skip
    edit = replace(
        small_edit(),
        operator=salve.Gate(torch.eye(4)[:n_own], 1.0),
        provenance=salve.Provenance("latents", tuple(range(n_own)), "ab" * 32),
    )
    dictionary = Dictionary(tensors, L1(), replace(edit.site, width=6), {})
    before, after = (
        Head(torch.randn(4, 6, generator=draw).double(), torch.zeros(4).double()) for _ in range(2)
    )
    changes = Changes(before, after, Budget(0, ()), is_of_head=True)
    results = []
    for step in (images, size):
        predictions = Predictions(edit, dictionary, changes, 1, seed)
        for start in range(0, images, step):
            part = x[start : start + step]
            labels = torch.zeros(len(part)).long()
            predictions.add(Batch(labels, before.logits(part), after.logits(part), part))
        results.append(predictions.records())
    for whole, pieces in zip(*results, strict=True):
        assert 0 <= whole.explained <= 1
        for name in ("explained", "explained_null", "r2", "slope"):
            # Codes are float32, and how a product of so few rows is summed depends on their number.
            one, other = getattr(whole, name), getattr(pieces, name)
            assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("n_own", [1, 3])
def test_other_latents_are_as_many_none_of_the_edit_and_each_set_once(n_own: int) -> None:
    sets = other_latents(range(n_own), range(3), 40, 5)
    assert len(set(sets)) == len(sets) == 19
    assert {len(set(each)) for each in sets} == {n_own}
    assert min(latent for each in sets for latent in each) >= 3
    assert other_latents(range(n_own), range(3), 40, 5) == sets
    assert other_latents([0], [0], 3, 0) in ([(1,), (2,)], [(2,), (1,)])
    assert other_latents([0, 1], [0, 1], 3, 0) == []


def test_what_contradicts_itself_is_refused() -> None:
    base, edit = small_assessment(), small_edit()
    one = base.predictions[0]
    own, other, both = one.latents, (9,), (*one.latents, 9)
    pair = (replace(one, latents=own), replace(one, latents=other), replace(one, latents=both))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"predictions": pair[:2]}, "last of all together"),
        ({"predictions": (pair[1], pair[0], pair[2])}, "last of all together"),
        ({"predictions": pair[2:]}, "last of all together"),
        ({"classes": (replace(base.classes[0], weights_changed=0), base.classes[1])}, "no logit"),
    ]
    for change, message in wrong:
        with pytest.raises(InputError, match=message):
            replace(base, **change)
    for fields, message in (
        ({"latents": ()}, "each once"), ({"latents": (5, 5)}, "each once"),
        ({"slope": None}, "both or neither"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            replace(one, **fields)
    with pytest.raises(InputError, match=r"predictions from latents .*9"):
        salve.EditArtifact(edit, assessment=replace(base, predictions=pair))
    with pytest.raises(InputError, match="ill-formed"):
        Prediction.from_json({**one.to_json(), "explained": 1.5})


def test_it_is_said_in_plain_words_and_on_the_card() -> None:
    base = small_assessment()
    lines = prediction_lines(base)
    assert lines == [
        "Predicted against measured: the codes of latent 5 predict 50.0 % of the change of the "
        "logits (other latents in its place: up to 25.0 %).",
        "Of the logit of class 'ü|x' (1): R² 0.750 over images, slope -1.5.",
    ]
    assert all(line in base.table() for line in lines)
    card = assessment_section(base.to_json())
    assert "the codes of latent 5 predict 50.0 %" in card
    worse = replace(base, predictions=(replace(base.predictions[0], explained_null=0.5),))
    assert "the codes of latent 5 do not predict what the edit does: 50.0 %" in (
        assessment_section(worse.to_json())
    )
    assert prediction_lines(replace(base, predictions=())) == []
    hidden = prediction_lines(replace(base, reach="hidden"))
    start = (
        "Predicted against measured (to first order, on at most 16 images): the codes of latent 5"
    )
    assert hidden[0].startswith(start)
