"""What two parts of an artifact say of the same thing is compared when it is made and when read."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_artifacts import (
    Change,
    Files,
    altered,
    covered,
    forged,
    in_memory,
    small_artifact,
    small_crit,
    small_dictionary_artifact,
    small_edit,
)
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.artifact import EditArtifact


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The files of an artifact that embeds a dictionary of four atoms; its edit is of the third."""
    folder = tmp_path_factory.mktemp("embedding")
    return covered(small_dictionary_artifact("l1").save_pretrained(folder))


def direction(values: Tensor) -> Change:
    return lambda _, tensors: tensors.update({"edit.directions": values[None]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (direction(torch.eye(4)[0]), "not atom \\[2\\]"),
        (direction(torch.tensor([0.6, 0.0, -0.8, 0.0])), "not atom \\[2\\]"),
        (lambda config, _: config["edit"]["provenance"].update(latents=[3]), "not atom \\[3\\]"),
        (lambda config, _: config["edit"]["provenance"].update(latents=[10**6]), "has 4"),
        (lambda config, _: config["edit"]["site"].update(name="blocks.7"), r"reads \('unembed"),
    ],
)
def test_an_edit_that_its_embedded_dictionary_did_not_make_is_refused(
    embedding: Files, change: Change, message: str
) -> None:
    with pytest.raises(ArtifactError, match=f"contradicts itself: .*{message}"):
        in_memory(forged(embedding, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, _: config.update(labels=["x"] * 50), "50 labels .* 3 classes"),
        (lambda config, _: config.update(labels=["a"]), "labels up to 2"),
        (
            lambda _, tensors: tensors.update({"alpha_crit.predicted": torch.tensor([10**12] * 4)}),
            "predicted up to 1000000000000",
        ),
    ],
)
def test_classes_that_the_classifier_does_not_have_are_refused(
    shared_files: Files, change: Change, message: str
) -> None:
    with pytest.raises(ArtifactError, match=f"contradicts itself: .*{message}"):
        in_memory(forged(shared_files, change))


def of_dictionary(change: Callable[[Edit], Edit]) -> Callable[[], object]:
    def make() -> object:
        artifact = small_dictionary_artifact("topk")
        return replace(artifact, edit=change(artifact.edit), embed_dictionary=False)

    return make


@pytest.mark.parametrize(
    "make",
    [
        of_dictionary(lambda edit: altered(edit, direction=torch.eye(4)[1])),
        of_dictionary(lambda edit: altered(edit, latent=1)),
        of_dictionary(lambda edit: replace(edit, site=replace(edit.site, name="other"))),
        lambda: EditArtifact(small_edit(), labels=list("abcd")),
        lambda: EditArtifact(small_edit(), labels=["a"], alpha_crit=small_crit()),
    ],
)
def test_they_are_not_made_either(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_what_was_changed_after_it_was_pulled_has_no_origin_any_more(tmp_path: Path) -> None:
    from salve_plugin.store.hub.address import Origin
    from salve_plugin.store.reference import Reference

    artifact = small_artifact()
    place: Any = Reference("me/edit", "0" * 40)
    origin = Origin(place, "main", "hub", from_cache=False, digest=artifact.digest)
    pulled = replace(artifact, origin=origin)
    assert pulled.origin == origin
    assert replace(pulled, pictures=None).origin == origin  # no part of the identity
    assert replace(pulled, labels=None, alpha_crit=None).origin is None
    pulled.save_pretrained(tmp_path)
    assert EditArtifact.from_pretrained(tmp_path).origin is None
