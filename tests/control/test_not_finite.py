"""Images that make logits NaN are refused by whatever would make a number of them."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

import salve_plugin as salve
from salve_plugin.discover.learners import create
from salve_plugin.errors import SalveError

LABELS = torch.tensor([0, 1, 2, 0])


@pytest.fixture(scope="module")
def parts() -> tuple[salve.HookedModel, salve.Dictionary, salve.Edit, str, torch.Tensor]:
    """A network, a dictionary of its last features, a hidden edit, its site, and one bad image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hooked = salve.attach(timm.create_model("test_vit", img_size=32, num_classes=3).eval())
        images = torch.randn(4, 3, 32, 32)
    images[1, 0, 0, 0] = torch.nan
    site = hooked.site("unembed.hook_in")
    atoms = torch.eye(site.width)[:6]
    tensors = {
        "atoms": atoms, "encoder_weight": atoms, "encoder_bias": torch.zeros(6),
        "decoder_bias": torch.zeros(site.width),
    }  # fmt: skip
    hidden = "blocks.0.ln1.hook_normalized"
    axis = torch.eye(hooked.site(hidden).width)[:, :1]
    edit = salve.edit_at(hooked, hidden, salve.LowRankMap(axis, axis, torch.zeros(1)))
    return hooked, salve.Dictionary(tensors, create("l1", {}), site), edit, hidden, images


CALLS: dict[str, Callable[..., Any]] = {
    "record": lambda h, d, e, s, x: salve.record(h, [(x, LABELS)], progress=False),
    "evaluate": lambda h, d, e, s, x: salve.evaluate(h, [(x, LABELS)]),
    "assess": lambda h, d, e, s, x: salve.assess(h, e, [(x, LABELS)]),
    "search": lambda h, d, e, s, x: salve.search_alpha_crit(h, e, [(x, LABELS)]),
    "with_kl": lambda h, d, e, s, x: salve.with_kl(h, e, [(x, LABELS)], kl=0.1),
    "learn_scales": lambda h, d, e, s, x: salve.learn_scales(h, [e], [(x, LABELS)]),
    "self_repair": lambda h, d, e, s, x: salve.self_repair(h, e, x, label=0),
    "fewest_to_flip": lambda h, d, e, s, x: salve.fewest_to_flip(h, d, x),
    "class_effects": lambda h, d, e, s, x: salve.class_effects(h, d, [(x, LABELS)], candidates=0),
    "Grad-FAM": lambda h, d, e, s, x: salve.LayerGradFam.of(h, d).attribute(x, target=0),
    "rome_value": lambda h, d, e, s, x: salve.rome_value(
        h, s, torch.ones(h.site(s).width), torch.eye(h.site(s).width), x, label=0
    ),
    "coar": lambda h, d, e, s, x: salve.coar(
        h, (x, LABELS), LABELS == 0, layer=h.site(s).readers[0], masks=20, top=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_an_image_with_nan_is_refused(name: str, parts: tuple[Any, ...]) -> None:
    with pytest.raises(SalveError, match=r"NaN|finite") as error:
        CALLS[name](*parts)
    assert "limit" not in str(error.value)  # no smaller strength would help
