"""Public functions refuse what is of another kind, and name it, before they compute anything."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch

import salve_plugin as salve
from salve_plugin.errors import InputError

pytestmark = pytest.mark.usefixtures("untyped")
Call = Callable[[Any, Any], object]


@pytest.fixture(scope="module")
def parts() -> SimpleNamespace:
    """A small network, what was recorded of it, and what was learned from that."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=4).eval()
        images = torch.randn(60, 3, 32, 32)
    hooked, labels = salve.attach(model), torch.arange(60) % 4
    acts = salve.record(hooked, [(images, labels)], "unembed.hook_in", progress=False)
    dictionary = salve.fit(acts, "topk", n_latents=8, steps=2, run=salve.Run(progress=False))
    return SimpleNamespace(
        model=model, hooked=hooked, images=images, acts=acts, dictionary=dictionary,
        edit=salve.suppress(hooked, dictionary, latent=1, strength=1.0), has=labels % 2 == 0,
        loader=[(images, labels)],
    )  # fmt: skip


CALLS: dict[str, tuple[Call, Any]] = {
    "assess dictionary": (
        lambda p, x: salve.assess(p.hooked, p.edit, p.acts, dictionary=x), "mine"),
    "alpha_crit classes": (
        lambda p, x: salve.alpha_crit(p.hooked, p.edit, p.acts, classes=x), torch.tensor(1)),
    "assess classes": (lambda p, x: salve.assess(p.hooked, p.edit, p.acts, classes=x), 4),
    "attach probe": (lambda p, x: salve.attach(p.model, probe=x), 224),
    "choose dictionary": (
        lambda p, x: salve.choose(p.hooked, salve.SuppressClass(1), p.acts, dictionary=x), "mine"),
    "choose features": (
        lambda p, x: salve.choose(
            p.hooked, salve.SuppressClass(1), p.acts, dictionary=p.dictionary, features=x), [1]),
    "class_association logit": (
        lambda p, x: salve.class_association(p.hooked, 1, p.acts, logit=x), "high"),
    "class_tree classes": (lambda p, x: salve.class_tree(p.hooked, x), 4),
    "coar keep": (lambda p, x: salve.coar(p.hooked, p.acts, 1, keep=x, masks=30), None),
    "coar ridge": (lambda p, x: salve.coar(p.hooked, p.acts, 1, ridge=x, masks=30), "weak"),
    "coar seed": (lambda p, x: salve.coar(p.hooked, p.acts, 1, seed=x, masks=30), None),
    "compare_recordings seed": (
        lambda p, x: salve.compare_recordings(p.dictionary, p.acts, p.acts, seed=x), None),
    "deviations stored": (lambda p, x: salve.deviations(x, x), None),
    "erase_through hooked": (
        lambda p, x: salve.erase_through(x, p.images, p.images, ["unembed.hook_in"]), None),
    "erase_through labels": (
        lambda p, x: salve.erase_through(
            p.hooked, p.images, p.images, ["unembed.hook_in"], labels=x), 3),
    "erase_through images": (
        lambda p, x: salve.erase_through(p.hooked, x, x, ["unembed.hook_in"]), None),
    "erase_through sites": (
        lambda p, x: salve.erase_through(p.hooked, p.images, p.images, x), None),
    "erase shrinkage": (
        lambda p, x: salve.erase(
            p.hooked, salve.find_concept(p.acts, p.has), shrinkage=x), "strong"),
    "evidence concepts": (
        lambda p, x: salve.evidence(
            p.hooked, p.dictionary, p.acts, images=p.images, concepts=x), [1]),
    "evidence groups": (
        lambda p, x: salve.evidence(p.hooked, p.dictionary, p.acts, groups=x), [[0, 1]]),
    "fewest_to_flip dictionary": (lambda p, x: salve.fewest_to_flip(p.hooked, x, p.images), None),
    "fewest_to_flip seed": (
        lambda p, x: salve.fewest_to_flip(p.hooked, p.dictionary, p.images, seed=x), None),
    "fit gradient": (lambda p, x: salve.fit(p.acts, "topk", gradient=x), 3),
    "fit learner": (lambda p, x: salve.fit(p.acts, x), ["topk"]),
    "fit run": (lambda p, x: salve.fit(p.acts, "topk", run=x), True),
    "fit site": (lambda p, x: salve.fit(p.acts.tensor(), "topk", site=x), "unembed.hook_in"),
    "forgetting sites": (
        lambda p, x: salve.forgetting(p.hooked, p.edit, p.loader, target=1, sites=x), 3),
    "forgetting steps": (
        lambda p, x: salve.forgetting(p.hooked, p.edit, p.loader, target=1, steps=x), 5),
    "fragility collateral": (
        lambda p, x: salve.fragility(
            p.hooked, {"e": p.edit}, p.loader, label=1, collateral=x), "few"),
    "fragility judge": (
        lambda p, x: salve.fragility(p.hooked, {"e": p.edit}, p.loader, judge=x), "me"),
    "fragility multiples": (
        lambda p, x: salve.fragility(
            p.hooked, {"e": p.edit}, p.loader, label=1, multiples=x), torch.tensor(2.0)),
    "fragility success": (
        lambda p, x: salve.fragility(p.hooked, {"e": p.edit}, p.loader, label=1, success=x), None),
    "grad_fam_maps latents": (
        lambda p, x: salve.grad_fam_maps(
            salve.LayerGradFam.of(p.hooked, p.dictionary), p.images[:2], x), "all"),
    "head_gradient site": (lambda p, x: salve.head_gradient(p.hooked, x), None),
    "latent_concept dictionary": (lambda p, x: salve.latent_concept(x, p.acts, 1), None),
    "map_check area": (lambda p, x: salve.map_check(
        p.hooked, p.dictionary, p.images, 1, area=x), "half"),
    "map_check heat": (lambda p, x: salve.map_check(
        p.hooked, p.dictionary, p.images, 1, heat=x), [[1.0]]),
    "map_check images": (
        lambda p, x: salve.map_check(p.hooked, p.dictionary, x, 1), "photo.png"),
    "map_check seed": (lambda p, x: salve.map_check(
        p.hooked, p.dictionary, p.images, 1, seed=x), None),
    "maximize dictionary": (lambda p, x: salve.maximize(p.hooked, x, 1), None),
    "maximize seed": (lambda p, x: salve.maximize(p.hooked, p.dictionary, 1, seed=x), None),
    "maximize tv_weight": (
        lambda p, x: salve.maximize(p.hooked, p.dictionary, 1, tv_weight=x), None),
    "maximize low": (lambda p, x: salve.maximize(p.hooked, p.dictionary, 1, low=x), "dark"),
    "maximize high": (lambda p, x: salve.maximize(p.hooked, p.dictionary, 1, high=x), [1.0, 2.0]),
    "memit sites": (
        lambda p, x: salve.memit(p.hooked, x, torch.ones(1, 4), torch.ones(1, 4), p.acts), 3),
    "memit keys": (
        lambda p, x: salve.memit(
            p.hooked, "unembed.hook_in", x, torch.ones(1, 4), p.acts), 3),
    "memit second_moments": (
        lambda p, x: salve.memit(
            p.hooked, "unembed.hook_in", torch.ones(1, 4), torch.ones(1, 4), x), 3),
    "overlay image": (lambda p, x: salve.overlay(x, torch.rand(4, 4)), "photo.png"),
    "overlay heat": (lambda p, x: salve.overlay(p.images[0], x), None),
    "overlay alpha": (lambda p, x: salve.overlay(p.images[0], torch.rand(4, 4), alpha=x), "half"),
    "overlay limit": (lambda p, x: salve.overlay(p.images[0], torch.rand(4, 4), limit=x), "most"),
    "overlay size": (lambda p, x: salve.overlay(p.images[0], torch.rand(4, 4), size=x), (4, 4, 3)),
    "predicted_effect latents": (
        lambda p, x: salve.predicted_effect(p.hooked, p.dictionary, p.acts, latents=x), 3),
    "predicted_effect seed": (
        lambda p, x: salve.predicted_effect(p.hooked, p.dictionary, p.acts, seed=x), None),
    "predicted_effect strength": (
        lambda p, x: salve.predicted_effect(p.hooked, p.dictionary, p.acts, strength=x), None),
    "product_map coarse": (lambda p, x: salve.product_map(x, torch.rand(2, 1, 4, 4)), None),
    "profile names": (lambda p, x: salve.profile(p.dictionary, p.acts, names=x), 4),
    "prune rows": (lambda p, x: salve.prune(p.hooked, p.acts, p.has, top=2, rows=x), 3),
    "prune rows, a scalar": (
        lambda p, x: salve.prune(p.hooked, p.acts, p.has, top=2, rows=x), torch.tensor(3)),
    "quality controls": (lambda p, x: salve.quality(p.dictionary, p.acts, controls=x), None),
    "quality embeddings": (lambda p, x: salve.quality(p.dictionary, p.acts, embeddings=x), 3),
    "quality others": (lambda p, x: salve.quality(p.dictionary, p.acts, others=x), None),
    "reassess stored": (
        lambda p, x: salve.reassess(p.hooked, p.edit, x, [(p.images, p.has)]), None),
    "refit_head l2": (lambda p, x: salve.refit_head(p.hooked, p.acts, l2=x), "weak"),
    "record classes": (
        lambda p, x: salve.record(p.hooked, p.loader, classes=x, progress=False), "abcd"),
    "quality seed": (
        lambda p, x: salve.quality(p.dictionary, p.acts, controls=("random",), seed=x), None),
    "register learner": (lambda p, x: salve.register(x), "topk"),
    "rome ridge": (
        lambda p, x: salve.rome(
            p.hooked, "unembed.hook_in", *salve.class_association(p.hooked, 1, p.acts), p.acts,
            ridge=x), "weak"),
    "save_lora edits": (lambda p, x: salve.save_lora(x, "nowhere"), None),
    "save_saelens dictionary": (lambda p, x: salve.save_saelens(x, "nowhere"), None),
    "state_digest state": (lambda p, x: salve.state_digest(x), "model.safetensors"),
    "sweep grid": (lambda p, x: salve.sweep(p.acts, "topk", x), ["n_latents"]),
    "sweep learners": (lambda p, x: salve.sweep(p.acts, x, {"n_latents": [8]}), None),
    "tcav concepts": (
        lambda p, x: salve.tcav(
            p.hooked, "blocks.1.hook_resid_post", x, p.images, p.images, target=1), ["dots"]),
    "tcav images": (
        lambda p, x: salve.tcav(
            p.hooked, "blocks.1.hook_resid_post", {"a": p.images[:4]}, p.images, x, target=1),
        None),
    "with_kl most": (
        lambda p, x: salve.with_kl(p.hooked, p.edit, p.acts, 0.01, most=x), "twice"),
    "tcav seed": (
        lambda p, x: salve.tcav(
            p.hooked, "unembed.hook_in", {"a": p.images[:2]}, p.images, p.images, target=1, sets=2,
            seed=x), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_another_kind_is_refused_by_name(parts: SimpleNamespace, name: str) -> None:
    call, value = CALLS[name]
    with pytest.raises(InputError, match=re.escape(repr(value)[:60])) as caught:
        call(parts, value)
    assert name.replace(",", "").split()[1] in str(caught.value)
    assert "expected" in str(caught.value)


LARGE_SEEDS: dict[str, Callable[[Any, int], object]] = {
    "coar": lambda p, seed: salve.coar(p.hooked, p.acts, 1, top=2, masks=50, seed=seed),
    "evidence": lambda p, seed: salve.evidence(
        p.hooked, p.dictionary, p.acts, permutations=2, seed=seed
    ),
    "quality": lambda p, seed: salve.quality(
        p.dictionary, p.acts, controls=("random",), seed=seed
    ),
    "tcav": lambda p, seed: salve.tcav(
        p.hooked, "unembed.hook_in", {"a": p.images[:2]}, p.images, p.images, target=1, sets=2,
        seed=seed,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE_SEEDS)
def test_a_seed_is_numpys_too_and_none_beyond_64_bits(parts: SimpleNamespace, name: str) -> None:
    LARGE_SEEDS[name](parts, np.int64(3))  # type: ignore[arg-type] # as NumPy's users have it
    with pytest.raises(InputError, match="seed 1180591620717411303424 is not from 0 to"):
        LARGE_SEEDS[name](parts, 2**70)
