"""Any function is a dictionary, and any way to name an activation is understood."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import InputError, UnknownSiteError

DOC = Path(__file__).parents[2] / "docs" / "validation.md"
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A network of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3))
        self.mlp = nn.Sequential(nn.Linear(12, 10), nn.GELU())
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.mlp(self.features(x).mean((2, 3))))
        return logits


class OwnSAE(nn.Module):
    """A dictionary with other names than ours."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)  # latent 3 is on for some of the images
        self.W = nn.Parameter(torch.randn(10, 20))

    def code(self, x: Tensor) -> Tensor:
        return (x @ self.W).relu()


def test_the_example_of_the_docs_runs_in_fifteen_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = DOC.read_text().partition("## A network and a dictionary of your own")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    names: dict[str, Any] = {"net": Net(), "sae": OwnSAE(), "images": IMAGES}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["heat"].shape == (4, 1, 6, 6)
    assert names["heat"].abs().sum() > 0
    assert names["picture"].size == (320, 320)


def test_a_function_gives_the_map_of_the_dictionary_that_it_is_of() -> None:
    net, sae = Net().eval(), OwnSAE()

    class Protocol(nn.Module):
        def encode(self, x: Tensor) -> Tensor:
            return sae.code(x)

    as_protocol = salve.LayerGradFam(
        net, net.features, Protocol(), site=(net.mlp, "out"), stage="post"
    )
    expected = as_protocol.attribute(IMAGES, target=3)
    encoder = salve.encoder(sae.code, n_latents=20, pre_activation=lambda x: x @ sae.W)
    for layer in (net.features, "features", ("features", "out"), ("mlp", "in"), "features.2"):
        for site in (net.mlp, "mlp", ("fc", "in"), ("mlp.1", "out")):
            if layer == ("mlp", "in"):  # pooled: it has no positions
                with pytest.raises(InputError, match="4-d map"):
                    salve.LayerGradFam(net, layer, encoder, site=site).attribute(IMAGES, target=3)
                continue
            fam = salve.LayerGradFam(net, layer, encoder, site=site, stage="post")
            torch.testing.assert_close(fam.attribute(IMAGES, target=3), expected)
    pre = salve.LayerGradFam(net, "features", encoder, site="mlp").attribute(IMAGES, target=3)
    on = sae.code(net.mlp(net.features(IMAGES).mean((2, 3))))[:, 3] > 0
    torch.testing.assert_close(pre[on], expected[on])
    assert on.any()
    assert not expected[~on].any()


def test_record_and_grad_fam_take_the_same_names() -> None:
    net = Net()
    hooked = salve.attach(net, head="fc", blocks=["features", net.mlp], probe=IMAGES)
    loader = [(IMAGES, torch.tensor([0, 1, 2, 0]))]
    name = "blocks.1.hook_resid_post"
    expected = salve.record(hooked, loader, name, progress=False).tensor()
    for site in (net.mlp, "mlp", ("mlp", "out"), (net.mlp, "out"), hooked.site(name)):
        assert hooked.site(site) == hooked.site(name)
        acts = salve.record(hooked, loader, site, progress=False)
        assert torch.equal(acts.tensor(), expected)
    assert hooked.site((net.fc, "in")).name == "unembed.hook_in"
    own = salve.encoder(OwnSAE().code, n_latents=20, site=hooked.site(net.mlp))
    heat = salve.LayerGradFam.of(hooked, own, layer=net.features, stage="post")
    by_name = salve.LayerGradFam(hooked, "blocks.0.hook_resid_post", own, site=name, stage="post")
    assert torch.equal(heat.attribute(IMAGES, target=1), by_name.attribute(IMAGES, target=1))
    for at in ("nowhere", nn.ReLU(), (net.features[0], "in")):
        with pytest.raises(UnknownSiteError, match=r"blocks="):
            hooked.site(at)


@pytest.mark.usefixtures("untyped")
def test_what_is_no_encoder_is_refused_when_it_is_made_or_used() -> None:
    any_encoder: Any = salve.encoder
    two = nn.Linear(10, 2)
    calls: Iterable[tuple[Callable[[], object], str]] = (
        (lambda: any_encoder(3, n_latents=2), "encode is 3"),
        (lambda: any_encoder(two, n_latents=0), "n_latents is 0"),
        (lambda: any_encoder(two, n_latents=2, pre_activation="x"), "pre_activation is 'x'"),
        (lambda: any_encoder(two, n_latents=3, width=10), r"expected \[2, 3\]"),
        (lambda: any_encoder(two, n_latents=2, width=9), "rows of 9 features"),
        (lambda: any_encoder(lambda x: (x, x), n_latents=2, width=9), "returns the one"),
    )
    for call, message in calls:
        with pytest.raises(InputError, match=message):
            call()
    net = Net()
    named: Iterable[tuple[Any, str, str]] = (
        (net, "nothing", "no module of Net, such as"),
        (lambda x: net(x), "mlp", "pass the model itself"),
    )
    fine = salve.encoder(two, n_latents=2)
    for forward, site, message in named:
        with pytest.raises(InputError, match=message):
            salve.LayerGradFam(forward, net.features, fine, site=site, stage="post")
    with pytest.raises(InputError, match=r"salve\.encoder"):
        salve.LayerGradFam(net, "features", nn.ReLU(), site="mlp", stage="post")  # type: ignore[arg-type]
    hooked = salve.attach(net, head="fc", probe=IMAGES)
    with pytest.raises(InputError, match="does not say which site"):
        salve.LayerGradFam.of(hooked, fine, stage="post")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.lists(st.integers(1, 3), max_size=2))
def test_an_encoder_is_its_function(width: int, n_latents: int, rows: list[int]) -> None:
    weight = torch.randn(width, n_latents, dtype=torch.float64)
    encoder = salve.encoder(lambda x: x @ weight.to(x), n_latents, width=width)
    x = torch.randn(*rows, width, dtype=torch.float64)
    assert torch.equal(encoder.encode(x), x @ weight)
    assert torch.equal(encoder(x), x @ weight)


def test_a_saelens_folder_needs_no_site(tmp_path: Path) -> None:
    x = torch.randn(300, 10, generator=torch.Generator().manual_seed(0))
    sae = salve.fit(x, "topk", n_latents=16, steps=20, k=2, learning_rate=0.01)
    salve.save_saelens(sae, tmp_path)
    assert salve.load_saelens(tmp_path).site == sae.site  # as it was noted
    bare = tmp_path / "cfg.json"
    fields = bare.read_text().replace('"salve_plugin"', '"somebody"')
    bare.write_text(fields)
    again = salve.load_saelens(tmp_path)
    assert (again.site.name, again.site.module, again.width) == ("rows", "", 10)
    torch.testing.assert_close(again.encode(x), sae.encode(x))
    net = Net()
    heat = salve.LayerGradFam(net, "features", again, site=net.mlp).attribute(IMAGES, target=0)
    assert heat.shape == (4, 1, 6, 6)
