"""Interventions at hidden sites, against activations edited by hand and the closed form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import salve_plugin as salve
from salve_plugin.demo import digits
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.faces.progress import bar
from salve_plugin.hooks import tapped
from salve_plugin.validate.evidence import hidden_effects
from salve_plugin.validate.evidence.head import read_head
from salve_plugin.validate.evidence.hidden_effects import _Spliced
from salve_plugin.validate.evidence.intervention import SCALES, intervened, intervention
from salve_plugin.validate.evidence.kept import Kept
from salve_plugin.validate.evidence.recorded_images import RecordedImages

FIXTURES = Path(__file__).parents[2] / "fixtures"


def study(digits_test: digits.Split, network: Any, site: str) -> tuple[Any, Any, Any, Any]:
    hooked = salve.attach(digits.load(network, FIXTURES / f"digits_{network}.safetensors"))
    few = digits.Split(digits_test.images[:24], digits_test.labels[:24])
    acts = salve.record(hooked, few.batches(), site, progress=False)
    # Atoms at random: each takes from many images, whatever was learned.
    encoder = torch.randn(4, acts.width, generator=torch.Generator().manual_seed(0))
    tensors = {
        "atoms": torch.nn.functional.normalize(encoder, dim=1), "encoder_weight": encoder / 8,
        "encoder_bias": torch.zeros(4), "decoder_bias": torch.zeros(acts.width),
    }  # fmt: skip
    dictionary = salve.Dictionary(tensors, L1(), acts.site, {})
    return hooked, dictionary, acts, TensorDataset(few.images, few.labels)


@pytest.mark.parametrize(
    ("network", "site"),
    [("resnet", "blocks.1.hook_resid_post"), ("vit", "blocks.1.hook_resid_post")],
)
def test_the_curve_is_what_the_network_makes_of_edited_activations(
    digits_test: digits.Split,
    network: str,
    site: str,
    tmp_path: Path,
) -> None:
    hooked, dictionary, acts, images = study(digits_test, network, site)
    result = salve.evidence(
        hooked, dictionary, acts, images=images, permutations=19, folder=tmp_path
    )
    told = (result.label >= 0).nonzero()[:, 0].tolist()
    assert told
    latent = max(told, key=lambda one: float(result.kl[one]))
    label = int(result.label[latent])
    own = images.tensors[0][images.tensors[1] == label][: hidden_effects.IMAGES]
    place, atom = hooked.site(site), dictionary.atoms[latent]
    prefix = place.prefix_tokens if place.layout == "tokens" else 0

    def scaled(scale: float) -> Any:
        def change(activation: torch.Tensor) -> torch.Tensor:
            moved = activation.movedim(place.channel_axis, -1).clone()
            patches = moved[:, prefix:] if prefix else moved
            codes = dictionary.encode(patches.reshape(-1, place.width))[:, latent]
            patches += (scale - 1) * codes.view(*patches.shape[:-1], 1) * atom
            return moved.movedim(-1, place.channel_axis)

        with torch.no_grad(), tapped(hooked.model, place, change):
            return hooked.model(own).double().log_softmax(1)

    for scale, probability in zip(SCALES, result.curve[latent].tolist(), strict=True):
        assert probability == pytest.approx(float(scaled(scale).exp()[:, label].mean()), abs=1e-5)
    base, ablated = scaled(1.0), scaled(0.0)
    kl = float((base.exp() * (base - ablated)).sum(1).mean())
    assert float(result.kl[latent]) == pytest.approx(kl, rel=1e-3, abs=1e-7)
    assert float(result.effect[latent]) == pytest.approx(
        float((ablated.exp() - base.exp())[:, label].mean()), abs=1e-5
    )
    assert 1 / 4 - 1e-9 <= float(result.effect_p[latent]) <= 1  # three others
    assert bool(result.explained.isnan().all())
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "effects-000000.safetensors"


def test_at_the_classifiers_input_it_is_the_closed_form(digits_test: digits.Split) -> None:
    hooked, dictionary, acts, images = study(digits_test, "resnet", "unembed.hook_in")
    head = read_head(hooked, dictionary, acts)
    some = images.tensors[0][:5]
    latent, others = 3, [0, 1, 2]
    codes = dictionary.encode(acts.tensor()[:5])[:, latent].double()
    exact = intervention(head.logits(acts.tensor()[:5]), codes, head.pull[3], head.pull[others], 2)
    with torch.no_grad():
        spliced = _Spliced(hooked, dictionary, some, latent)
        atoms = dictionary.atoms
        run = intervened(
            spliced.logits(torch.zeros(1), atoms[:1])[0],
            lambda amounts: spliced.logits(amounts, atoms[latent].expand(len(amounts), -1)),
            lambda amounts: spliced.logits(amounts, atoms[others]),
            3, 2, close=0.001, least=1e-9,
        )  # fmt: skip
    assert run.curve == pytest.approx(exact.curve, abs=1e-5)
    assert run.kl == pytest.approx(exact.kl, rel=1e-3, abs=1e-7)
    assert run.effect_p == exact.effect_p


def test_a_latent_without_a_class_or_a_code_has_no_effect(digits_test: digits.Split) -> None:
    hooked, dictionary, acts, images = study(digits_test, "resnet", "blocks.1.hook_resid_post")
    tensors = {
        "atoms": dictionary.atoms.detach()[:2], "encoder_weight": torch.zeros(2, acts.width),
        "encoder_bias": torch.zeros(2), "decoder_bias": torch.zeros(acts.width),
    }  # fmt: skip
    dead = salve.Dictionary(tensors, L1(), acts.site, {})
    with bar("interventions", 2, show=False) as update:
        effects = hidden_effects.hidden_effects(
            hooked, dead, RecordedImages(hooked, acts, images), acts.image_labels().long(),
            torch.tensor([3, -1]), Kept(None, ""), seed=0, update=update,
        )  # fmt: skip
    assert float(effects["kl"][0]) == pytest.approx(0, abs=1e-9)
    assert float(effects["effect_p"][0]) == 1
    assert float(effects["effect"][0]) == pytest.approx(0, abs=1e-6)
    assert bool(effects["curve"][1].isnan().all())
