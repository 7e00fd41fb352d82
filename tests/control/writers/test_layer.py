"""What all writers share: the pristine layer, and an edit that says what wrote it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from layer_updates import draw

from salve_plugin import (
    Activations,
    Edit,
    EditArtifact,
    HookedModel,
    class_association,
    coar,
    enhance,
    mask,
    memit,
    prune,
    refit_head,
    rome,
    zero_row,
)
from salve_plugin.site import HEAD_INPUT

Writer = Callable[[HookedModel, Activations], Edit]


def _rome(hooked: HookedModel, acts: Activations) -> Edit:
    return rome(hooked, HEAD_INPUT, *class_association(hooked, 3, acts), acts)


def _memit(hooked: HookedModel, acts: Activations) -> Edit:
    key, value = class_association(hooked, 3, acts)
    (edit,) = memit(hooked, HEAD_INPUT, key[None], value[None], acts)
    return edit


WRITERS: dict[str, Writer] = {
    "mask": lambda hooked, acts: mask(hooked, 3, acts),
    "zeroed row": lambda hooked, acts: zero_row(hooked, 3),
    "ROME": _rome,
    "MEMIT": _memit,
    "COAR-Edit": lambda hooked, acts: coar(hooked, acts, 3, masks=60).edit,
    "magnitude pruning": lambda hooked, acts: prune(hooked, acts, acts.labels() == 3),
    "head refitted": lambda hooked, acts: refit_head(hooked, acts),
}


@pytest.mark.parametrize("method", list(WRITERS))
def test_every_edit_travels_and_its_card_names_the_method(
    method: str, digits_hooked: HookedModel, digits_acts: Activations, tmp_path: Path
) -> None:
    edit = WRITERS[method](digits_hooked, digits_acts)
    assert edit.provenance.kind == "written"
    assert method in edit.provenance.note
    artifact = EditArtifact(edit)
    artifact.save_pretrained(tmp_path)
    loaded = EditArtifact.from_pretrained(tmp_path).edit
    assert (loaded, loaded.provenance) == (edit, edit.provenance)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**Method:**" in card
    assert method in card
    state = {name: tensor.clone() for name, tensor in digits_hooked.model.state_dict().items()}
    loaded.apply_(digits_hooked.model)
    loaded.revert_(digits_hooked.model)
    after = digits_hooked.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("method", list(WRITERS))
def test_an_edit_does_not_depend_on_edits_that_are_on_the_layer(
    method: str,
    digits_hooked: HookedModel,
    digits_acts: Activations,
    make_dictionary: Callable[..., object],
) -> None:
    dictionary = make_dictionary(digits_hooked.sites[HEAD_INPUT])
    other = enhance(digits_hooked, dictionary, latent=1, strength=2.0)  # type: ignore[arg-type] # a Dictionary
    alone = WRITERS[method](digits_hooked, digits_acts)
    with other.applied(digits_hooked):
        beside = WRITERS[method](digits_hooked, digits_acts)
    assert beside == alone


def test_notes_of_many_classes_fit_into_an_artifact(
    with_head: Callable[..., HookedModel], tmp_path: Path
) -> None:
    hooked = with_head(draw(0, 300, 6), draw(1, 300))
    acts = draw(2, 299, 6), torch.arange(299)
    edit = mask(hooked, range(299), acts)
    EditArtifact(edit).save_pretrained(tmp_path)
    assert EditArtifact.from_pretrained(tmp_path).edit == edit
