"""Arguments that are given in one another's place, or not at all, are refused in words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import salve_plugin as salve
from salve_plugin.errors import InputError

pytestmark = pytest.mark.usefixtures("untyped")

# What a user without a type checker sees.
any_salve: Any = salve
IMAGES = [(torch.rand(12, 3), torch.arange(12) % 4)]


def refused(
    h: salve.HookedModel, d: salve.Dictionary, a: salve.Activations, e: salve.Edit
) -> dict[str, tuple[Callable[[], object], str]]:
    s = any_salve
    return {
        "profile turned round": (lambda: s.profile(a, d), "in this order; got Activations and Dic"),
        "quality of nothing": (lambda: s.quality(d, None), "got Dictionary and NoneType"),
        "predicted of nothing": (lambda: s.predicted_effect(h, None, a), "got NoneType and Act"),
        "compared with nothing": (lambda: s.compare_recordings(d, a, None), "and NoneType"),
        "a latent's card": (lambda: s.latent_card(h, d, "x", 1, images=[]), "and str"),
        "nothing recorded": (lambda: s.record(h, None), "a loader was expected, got NoneType"),
        "one number": (
            lambda: s.evaluate(h, torch.tensor(3)), "a loader was expected, got Tensor"),
        "one number compared": (
            lambda: s.fragility(h, {"a": e}, torch.tensor(3), label=1), "data Tensor are to be"),
        "nothing evaluated": (lambda: s.evaluate(h, 3), "a loader was expected, got int"),
        "nothing assessed": (lambda: s.assess(h, e, None), "a loader was expected"),
        "nothing searched": (lambda: s.search_alpha_crit(h, e, None), "a loader was expected"),
        "nothing learnt on": (lambda: s.learn_scales(h, [e], 7), "a loader was expected, got int"),
        "evaluation of no model": (lambda: s.evaluate("x", IMAGES), "a model was expected"),
        "scales of a bare model": (lambda: s.learn_scales(h.model, [e], IMAGES), "attach it first"),
        "windows of no model": (lambda: s.fragility(None, {"e": e}, a, label=1), "attach it first"),
        "budget of no model": (lambda: s.with_kl(None, e, a, 0.1), "attach it first"),
        "budget of no number": (lambda: s.with_kl(h, e, a, "x"), "kl is 'x'"),
        "repair of no model": (lambda: s.self_repair(None, e, IMAGES[0][0], 1), "attach it first"),
        "erasing from a bare model": (
            lambda: s.erase(h.model, s.direction_concept(a, torch.ones(6))), "attach it first"
        ),
        "repair of no edit": (lambda: s.self_repair(h, 3, IMAGES[0][0], 1), "an edit was expected"),
        "repair on no images": (lambda: s.self_repair(h, e, IMAGES, 1), "images were expected"),
        "search of no edit": (lambda: s.search_alpha_crit(h, None, IMAGES), "an edit was expected"),
        "multiples": (lambda: s.fragility(h, {"e": e}, a, label=1, multiples=None), "multiples is"),
        "masks": (lambda: s.coar(h, a, 1, top=2, masks=None), "masks"),
        "top": (lambda: s.coar(h, a, 1, top="2"), "top"),
        "classes": (lambda: s.alpha_crit(h, e, a, classes=1), "a list of class indices"),
        "share": (lambda: s.alpha_crit(h, e, a).strength_for(1, "x"), "share is 'x'"),
        "l2": (lambda: s.learn_scales(h, [e], IMAGES, l2="x"), "l2 is 'x'"),
        "names": (lambda: s.fragility(h, {3: e}, a, label=1), "3 is no name"),
        "contexts": (
            lambda: s.fragility(h, {"e": e}, a, label=1, contexts=[IMAGES]), "by its name"
        ),
        "hidden": (lambda: s.choose(h, s.SuppressClass(1), a, hidden=None), "a list of edits"),
        "candidates": (lambda: s.class_effects(h, d, IMAGES, candidates=None), "candidates"),
    }  # fmt: skip


def test_each_says_what_was_expected(tiny: salve.HookedModel, atoms: salve.Dictionary) -> None:
    acts = salve.record(tiny, IMAGES, progress=False)
    edit = salve.suppress(tiny, atoms, latent=0, strength=1.0)
    for name, (call, sentence) in refused(tiny, atoms, acts, edit).items():
        with pytest.raises(InputError) as caught:
            call()
        assert sentence in str(caught.value), name
    assert not salve.status(tiny).applied


def test_what_numbers_its_batches_is_a_loader(tiny: salve.HookedModel) -> None:
    class Numbered:
        def __getitem__(self, number: int) -> Any:
            return IMAGES[number]

    loader: Any = Numbered()
    assert salve.record(tiny, loader, progress=False).n_images == 12
