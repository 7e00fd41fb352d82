"""What an assessment says can be measured again, and what differs is named."""

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import salve_plugin as salve
from salve_plugin import Activations, Dictionary, HookedModel
from salve_plugin.demo import digits
from salve_plugin.errors import InputError


def test_it_comes_out_the_same_from_a_recording_and_from_the_network(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=6.0, rows=[3])
    stored = salve.assess(resnet, edit, acts, target=3, dictionary=atoms, seed=4)
    # Another size of batches rounds otherwise, and means the same.
    for loader in (digits_test.batches(), digits_test.batches(7)):
        again = salve.reassess(resnet, edit, stored, loader, atoms)
        assert salve.deviations(stored, again) == []
        assert again.evidence.recording is not None
    without = salve.reassess(resnet, edit, stored, digits_test.batches())
    assert salve.deviations(stored, without) == []
    assert "random latent" not in [each.name for each in without.controls]
    run = salve.assess(resnet, edit, digits_test.batches(), target=3)
    assert salve.deviations(run, salve.reassess(resnet, edit, run, digits_test.batches())) == []


def test_other_images_another_seed_and_a_wrong_number_are_told(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=6.0, rows=[3])
    stored = salve.assess(resnet, edit, acts, target=3)
    images = digits_test.images.clone()
    images[0] += 0.01
    found = salve.reassess(resnet, edit, stored, [(images, digits_test.labels)])
    assert "evidence.images" in [each.field for each in salve.deviations(stored, found)]
    fewer = [(digits_test.images[:300], digits_test.labels[:300])]
    found = salve.reassess(resnet, edit, stored, fewer)
    fields = [each.field for each in salve.deviations(stored, found)]
    assert {"images", "evidence.labels", "classes.3.count"} <= {*fields}
    wrong = replace(stored, effect=replace(stored.effect, kl_others=1.0))
    (one,) = salve.deviations(wrong, stored)
    assert (one.field, one.stored, one.measured) == (
        "effect.kl_others", 1.0, stored.effect.kl_others,
    )  # fmt: skip
    assert one.to_json()["field"] == "effect.kl_others"
    missing = replace(stored, controls=stored.controls[1:])
    assert [each.field for each in salve.deviations(stored, missing)] == ["controls.mask"]


def test_what_a_concept_was_a_folder_does_not_tell(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=6.0)
    stored = salve.assess(resnet, edit, acts, has=torch.arange(360) < 180)
    with pytest.raises(InputError, match="about a concept"):
        salve.reassess(resnet, edit, stored, digits_test.batches())


class Named(TensorDataset):
    """Digits whose data set has names for them."""

    classes = digits.CLASSES


def test_names_of_the_new_data_are_no_deviation(
    resnet: HookedModel, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.suppress(resnet, atoms, latent=2, strength=6.0)
    stored = salve.assess(resnet, edit, digits_test.batches())
    assert {each.name for each in stored.classes} == {None}
    loader = DataLoader(Named(digits_test.images, digits_test.labels), batch_size=128)
    assert salve.deviations(stored, salve.reassess(resnet, edit, stored, loader)) == []
