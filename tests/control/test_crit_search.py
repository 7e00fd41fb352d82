"""The searched critical strength against the exact one, and against edited hidden layers."""

import pytest
import timm
import torch

from salve_plugin import (
    Activations,
    Gate,
    HookedModel,
    LowRankMap,
    LowRankUpdate,
    alpha_crit,
    attach,
    edit_at,
    status,
)
from salve_plugin.control.crit_search import search_alpha_crit
from salve_plugin.control.critical import CritGoal
from salve_plugin.demo import digits
from salve_plugin.errors import EditStateError, InputError
from salve_plugin.site import HEAD_INPUT
from salve_plugin.store.digest import fingerprints

HIDDEN = "blocks.0.mlp.hook_post"


def unit(width: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(1, width, generator=draw), dim=1)


@pytest.fixture(scope="module")
def vit() -> HookedModel:
    """The trained ViT, in train mode, which a search is to leave alone."""
    from tests.conftest import FIXTURES

    return attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))


@pytest.mark.parametrize("target", ["zero", "fraction", "flip"])
def test_at_the_head_it_finds_the_exact_strengths(
    digits_hooked: HookedModel,
    digits_test: digits.Split,
    digits_acts: Activations,
    target: CritGoal,
) -> None:
    # Along the mean of the activations, so that all evidence fades.
    mean = torch.nn.functional.normalize(digits_acts.tensor().abs().mean(0, keepdim=True))
    edit = edit_at(digits_hooked, HEAD_INPUT, Gate(mean, 1.0))
    exact = alpha_crit(digits_hooked, edit, digits_acts, target=target).values[:60]
    batches = [(digits_test.images[a : a + 30], digits_test.labels[a : a + 30]) for a in (0, 30)]
    found = search_alpha_crit(
        digits_hooked,
        edit,
        batches,
        target=target,
        steps=60,
        halvings=6,
    )
    assert found.tolerance == found.step / 64 == found.limit / 60 / 64
    assert torch.equal(found.values == 0, exact == 0)
    seen = found.values.isfinite() & (found.values > 0)
    assert int(seen.sum()) > 10
    # The bracket holds the first crossing; a dip between two grid points may be missed, never
    # made up: nothing is found before it.
    slack = 1e-4 * found.limit
    assert bool((found.values >= exact - slack).all())
    within = (found.values - exact)[seen] <= found.tolerance + slack
    assert float(within.double().mean()) > 0.95
    assert bool((found.values[exact > found.limit + slack]).isinf().all())


@pytest.mark.parametrize("form", ["gate", "map"])
def test_at_a_hidden_site_the_edited_model_turns_there(
    vit: HookedModel, digits_test: digits.Split, form: str
) -> None:
    width = vit.site(HIDDEN).width
    one = unit(width)
    mean = torch.full((1,), -2.0)
    operator = Gate(one, 1.0) if form == "gate" else LowRankMap(20 * one.T, one.T, mean)
    edit = edit_at(vit, HIDDEN, operator)
    images, labels = digits_test.images[:40], digits_test.labels[:40]
    before = fingerprints(dict(vit.model.state_dict()))
    vit.model.train()
    try:
        found = search_alpha_crit(
            vit, edit, [(images, labels)], against="predicted", limit=None, steps=20, halvings=5
        )
        assert vit.model.training
    finally:
        vit.model.eval()
    assert fingerprints(dict(vit.model.state_dict())) == before
    assert not status(vit).applied
    grid = torch.arange(1, 21, dtype=torch.float64) * found.limit / 20
    turned = []
    for strength in grid.tolist():
        with edit.with_strength(strength).applied(vit), torch.no_grad():
            turned.append(vit(images).argmax(1) != found.predicted)
    first = torch.stack(turned).int()
    some = first.amax(0) > 0
    assert torch.equal(found.values.isfinite(), some)
    assert int(some.sum()) > 3
    cell = first.argmax(0)
    high = grid[cell]
    assert bool((found.values[some] <= high[some]).all())
    assert bool((found.values[some] > (high - found.step)[some]).all())
    for image in some.nonzero()[:, 0].tolist()[:6]:
        for strength, stands in (
            (float(found.values[image]), False),
            (float(found.values[image]) - found.tolerance, True),
        ):
            with edit.with_strength(strength).applied(vit), torch.no_grad():
                predicted = vit(images[image : image + 1]).argmax()
            assert (int(predicted) == int(found.predicted[image])) is stands


def test_the_model_is_restored_when_a_forward_pass_fails(
    vit: HookedModel, digits_test: digits.Split
) -> None:
    edit = edit_at(vit, HIDDEN, Gate(unit(vit.site(HIDDEN).width), 1.0))
    before = fingerprints(dict(vit.model.state_dict()))
    calls = []

    def fails(*_: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = vit.model.register_forward_hook(fails)
    try:
        with pytest.raises(KeyboardInterrupt):
            search_alpha_crit(vit, edit, [(digits_test.images[:4], digits_test.labels[:4])])
    finally:
        handle.remove()
    assert fingerprints(dict(vit.model.state_dict())) == before
    assert not status(vit).applied


def test_one_logit_and_its_threshold() -> None:
    torch.manual_seed(0)
    hooked = attach(timm.create_model("resnet10t", num_classes=1).eval())
    images = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = hooked(images)[:, 0].double()
    threshold = float(logits.median()) + 1e-4
    edit = edit_at(hooked, HEAD_INPUT, Gate(unit(hooked.site(HEAD_INPUT).width), 1.0))
    labels = (logits > threshold).long()
    found = search_alpha_crit(
        hooked, edit, [(images, labels)], threshold=threshold, steps=30, halvings=4
    )
    assert torch.equal(found.predicted, labels)
    assert found.to_json()["threshold"] == threshold
    for image in found.values.isfinite().nonzero()[:, 0].tolist()[:4]:
        with edit.with_strength(float(found.values[image])).applied(hooked), torch.no_grad():
            assert int(hooked(images[image : image + 1]) > threshold) != int(labels[image])


def test_what_cannot_be_searched_is_refused(vit: HookedModel, digits_test: digits.Split) -> None:
    batches = [(digits_test.images[:4], digits_test.labels[:4])]
    edit = edit_at(vit, HIDDEN, Gate(unit(vit.site(HIDDEN).width), 1.0))
    for wrong, match in (
        ({"steps": 0}, "steps 0"), ({"limit": -1.0}, "limit -1"), ({"fraction": 1.0}, "fraction"),
        ({"threshold": 0.5}, "one logit"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match):
            search_alpha_crit(vit, edit, batches, **wrong)
    with pytest.raises(InputError, match="no batch"):
        search_alpha_crit(vit, edit, [])
    with edit.with_strength(2.0).applied(vit), pytest.raises(EditStateError, match="revert it"):
        search_alpha_crit(vit, edit, batches)
    width = vit.site(HEAD_INPUT).width
    update = LowRankUpdate(torch.ones(10, 1), torch.ones(width, 1))
    with pytest.raises(InputError, match="no strength"):
        search_alpha_crit(vit, edit_at(vit, HEAD_INPUT, update), batches)
