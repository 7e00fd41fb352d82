"""`choose` with hidden edits on offer: judged together against the model as it was given."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from salve_plugin import (
    Choice,
    RemoveConcept,
    SalveError,
    SuppressClass,
    attach,
    choose,
    erase_through,
    find_concept,
    record,
)
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[2] / "fixtures"
SITES = [f"blocks.{block}.hook_{branch}_out" for block in (2, 3) for branch in ("attn", "mlp")]


@pytest.fixture(scope="module")
def barred(digits_test: digits.Split) -> SimpleNamespace:
    """Digits with and without a bar, recorded at the head of the ViT; edits from other digits."""
    hooked = attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    plain, labels = digits_test.images, digits_test.labels
    marked = plain.clone()
    marked[:, :, :3] = marked.max()

    def loader(images: Tensor, part: slice) -> list[tuple[Tensor, Tensor]]:
        return list(zip(*(torch.split(each[part], 60) for each in (images, labels)), strict=True))

    used, unseen = slice(0, 120), slice(120, 300)
    images = [loader(marked, used), loader(plain, used)]
    acts = [record(hooked, one, progress=False) for one in images]
    hidden = erase_through(hooked, loader(marked, unseen), loader(plain, unseen), SITES, "repair")
    concept = find_concept(acts[0], without=acts[1], name="bar")
    return SimpleNamespace(
        hooked=hooked, marked=marked[used], plain=plain[used], images=images, hidden=hidden,
        goal=RemoveConcept(concept, min_removed=0.9, max_harm=0.02),
    )  # fmt: skip


def swapped(loader: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Swap two images of one class in the last batch: no label changes."""
    images, labels = (part.clone() for part in loader[-1])
    one, other = (labels == labels[0]).nonzero()[:2, 0].tolist()
    images[[one, other]] = images[[other, one]]
    return [*loader[:-1], (images, labels)]


@pytest.fixture(scope="module")
def chosen(barred: SimpleNamespace) -> Choice:
    return choose(barred.hooked, barred.goal, hidden=barred.hidden, images=barred.images)


def test_the_figures_are_those_of_the_model_with_all_edits(
    barred: SimpleNamespace, chosen: Choice
) -> None:
    model = barred.hooked.model
    after = [one for one in chosen.tried if one.hidden]
    assert after[0].method == f"after {len(SITES)} hidden edits: no edit"
    with torch.no_grad():
        before = float(
            (model(barred.marked).argmax(1) != model(barred.plain).argmax(1)).float().mean()
        )
        for edit in barred.hidden:
            edit.apply_(model)
        flips = float(
            (model(barred.marked).argmax(1) != model(barred.plain).argmax(1)).float().mean()
        )
        for edit in barred.hidden:
            edit.revert_(model)
    assert after[0].figures["flips"] == pytest.approx(flips, abs=1e-6)
    assert after[0].effect == pytest.approx(1 - flips / before, abs=1e-6)


def test_what_is_chosen_does_at_least_what_the_head_alone_does(
    barred: SimpleNamespace, chosen: Choice
) -> None:
    alone = choose(barred.hooked, barred.goal)
    assert chosen.tried[: len(alone.tried)] != ()
    assert [one.method for one in chosen.tried[: len(alone.tried)]] == [
        one.method for one in alone.tried
    ]
    assert chosen.chosen.effect >= alone.chosen.effect
    assert chosen.chosen.harm <= barred.goal.max_harm
    assert chosen.edits == (*chosen.chosen.hidden, chosen.edit)


def test_all_edits_go_on_and_off_together_to_the_bit(
    barred: SimpleNamespace, chosen: Choice
) -> None:
    model = barred.hooked.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    together = next(one for one in chosen.tried if one.hidden and one.effect > 0)
    for edit in (*together.hidden, together.edit):
        edit.apply_(model)
    with torch.no_grad():
        assert not model(barred.plain).equal(model(barred.marked))
    for edit in (*together.hidden, together.edit):
        edit.revert_(model)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda b: {"images": b.images[:1]}, "one for each"),
        (lambda b: {"images": b.images[::-1]}, "image 0 is not the one that was recorded"),
        (lambda b: {"images": [b.images[0], swapped(b.images[1])]}, "is not the one that was"),
        (lambda b: {"images": [b.images[0], iter(b.images[1])]}, "read once"),
        (lambda b: {"images": [b.images[0], []]}, "empty loader"),
        (lambda b: {"images": [b.images[0][:1], b.images[1]]}, "the very images"),
    ],
)
def test_other_images_are_refused(barred: SimpleNamespace, change: object, sentence: str) -> None:
    assert callable(change)
    options = {"hidden": barred.hidden, "images": barred.images} | change(barred)
    before = {name: tensor.clone() for name, tensor in barred.hooked.model.state_dict().items()}
    with pytest.raises(SalveError, match=sentence):
        choose(barred.hooked, barred.goal, **options)
    after = barred.hooked.model.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in after.items())


def test_edits_of_the_head_and_goals_of_a_class_are_refused(
    barred: SimpleNamespace, chosen: Choice
) -> None:
    head = [one.edit for one in chosen.tried if not one.hidden][-1]
    with pytest.raises(SalveError, match="earlier sites"):
        choose(barred.hooked, barred.goal, hidden=[head], images=barred.images)
    acts = barred.goal.concept.recordings[0]
    with pytest.raises(SalveError, match="goals about a concept"):
        choose(barred.hooked, SuppressClass(1), acts, hidden=barred.hidden)
