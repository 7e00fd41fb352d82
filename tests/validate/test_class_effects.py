"""What latents do to a class, against each image and latent by hand."""

import pytest
import torch
from latent_networks import attached, dictionary_at
from torch import Tensor

import salve_plugin as salve
from salve_plugin.errors import InputError

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
LOADER = [(IMAGES[:2], torch.tensor([1, 3])), (IMAGES[2:], torch.tensor([1]))]


@pytest.mark.parametrize("name", ["unembed.hook_in", "blocks.1.hook_resid_post"])
@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
def test_contributions_and_falls_by_hand(network: str, name: str) -> None:
    hooked = attached(network)
    site = hooked.site(name)
    sae = dictionary_at(site, 6, k=4)
    effects = salve.class_effects(hooked, sae, LOADER, candidates=2)
    labels = torch.tensor([1, 3, 1])
    _, cache = hooked.run_with_cache(IMAGES)
    x = cache[name].detach()

    def logit(activation: Tensor) -> Tensor:
        hook = (name, lambda _, hook: activation)
        logits: Tensor = hooked.run_with_hooks(IMAGES, fwd_hooks=[hook])
        return (logits - logits.mean(1, keepdim=True)).gather(1, labels[:, None])[:, 0]

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logit(leaf).sum(), leaf)
    code = sae.encode(x.movedim(site.channel_axis, -1))
    added = code * (gradient.movedim(site.channel_axis, -1) @ sae.atoms.T)
    added = added.flatten(1, -2).sum(1) if added.ndim > 2 else added
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1], expected[3] = (added[0] + added[2]) / 2, added[1]
    torch.testing.assert_close(effects.contributions, expected)
    assert effects.counts.tolist() == [0, 2, 0, 1]
    whole = logit(x).detach()
    for label in (1, 3):
        measured = effects.falls[label].isfinite().nonzero()[:, 0].tolist()
        assert measured == sorted(expected[label].topk(2).indices.tolist())
        for latent in measured:
            term = code[..., [latent]] * sae.atoms[latent]
            without = logit(x - term.movedim(-1, site.channel_axis)).detach()
            fall = (whole - without)[labels == label].mean()
            torch.testing.assert_close(effects.falls[label, latent], fall)
        assert sorted(effects.ranked(label, 2)) == measured
        assert sorted(effects.ranked(label, 6)) == list(range(6))
    plain = salve.class_effects(hooked, sae, LOADER, candidates=0)
    assert plain.ranked(3, 1) == [int(expected[3].argmax())]
    assert plain.falls.isnan().all()


def test_it_can_be_called_in_inference_mode() -> None:
    hooked = attached("test_resnet")
    sae = dictionary_at(hooked.site("blocks.1.hook_resid_post"), 6, k=4)
    effects = salve.class_effects(hooked, sae, LOADER, candidates=2)
    with torch.inference_mode():
        again = salve.class_effects(hooked, sae, LOADER, candidates=2)
    torch.testing.assert_close(again.contributions, effects.contributions)
    torch.testing.assert_close(again.falls, effects.falls, equal_nan=True)


def test_what_is_not_there_is_refused() -> None:
    hooked = attached("test_resnet")
    sae = dictionary_at(hooked.site("unembed.hook_in"), 6, k=4)
    with pytest.raises(InputError, match="candidates is -1; at least 0"):
        salve.class_effects(hooked, sae, LOADER, candidates=-1)
    effects = salve.class_effects(hooked, sae, LOADER)
    with pytest.raises(
        InputError, match=r"class 0 has no image here; those that have are \[1, 3\]"
    ):
        effects.ranked(0)
    with pytest.raises(InputError, match="at least 1 was expected"):
        effects.ranked(1, 0)
