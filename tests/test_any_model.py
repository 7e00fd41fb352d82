"""Models that no family knows: wrapped ones, and one's own with a linear head."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from jaxtyping import config
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import InputError, UnsupportedModelError

IMAGES = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LOADER = [(IMAGES, torch.arange(40) % 3)]
PROBE = IMAGES[:2]


@pytest.fixture
def untyped() -> Iterator[None]:
    """No annotation is enforced, as in a program of one's own."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


class Own(nn.Module):
    """A small network of nobody's family."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(x).mean((2, 3)))
        return logits


class TwoLayers(Own):
    """Its `fc` is not what gives the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Backbone(nn.Module):
    """A backbone of timm's with a head of one's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = timm.create_model("test_resnet", num_classes=0)
        self.head = nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits


def plain() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=3)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "attached": lambda model: nn.DataParallel(salve.attach(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_what_is_around_a_model_is_taken_off(name: str) -> None:
    model = plain()
    hooked = salve.attach(WRAPPERS[name](model))
    assert hooked.model is model
    assert hooked.description == salve.attach(model).description


@pytest.mark.parametrize(
    ("model", "path"),
    [(nn.Sequential(nn.Identity(), plain()), "1"), (Backbone(), "backbone")],
)
def test_the_known_model_inside_is_named(model: nn.Module, path: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"inside: ResNet at '{path}'") as error:
        salve.attach(model)
    assert "attach(model, head=...)" in str(error.value)


@pytest.mark.parametrize(
    ("model", "head"),
    [(Own(), "fc"), (Backbone(), "head"), (nn.Sequential(nn.Identity(), plain()), "1.fc")],
)
def test_a_model_with_a_linear_head_goes_all_the_way(
    model: nn.Module, head: str, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooked = salve.attach(model, head=head, probe=PROBE)
    assert hooked.description["num_classes"] == 3
    assert hooked.description["family"] == "torch"
    weight, bias = hooked.unembed()
    acts = salve.record(hooked, LOADER, progress=False)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(acts.tensor() @ weight.T + bias, model(IMAGES))
    model.train()
    sae = salve.fit(acts, "l1", n_latents=6, steps=10)
    heat = salve.LayerGradFam.of(hooked, sae).attribute(IMAGES[:2], target=0)
    assert heat.shape[:2] == (2, 1)
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    assert len(salve.alpha_crit(hooked, edit, acts).values) == 40
    artifact = salve.EditArtifact(edit=edit)
    artifact.save_pretrained(tmp_path / "edit")
    salve.EditArtifact.from_pretrained(tmp_path / "edit").edit.apply_(model)
    assert not torch.equal(model.get_parameter(f"{head}.weight"), before[f"{head}.weight"])
    edit.revert_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("untyped")
def test_a_head_that_is_not_what_gives_the_logits_is_refused() -> None:
    wrong: Iterable[tuple[nn.Module, Any, str]] = (
        (TwoLayers(), "fc", "no weighted sum"),
        (Own(), "body", "with no Linear"),
        (Own(), "nothing", r"one of \['fc'\]"),
        (Own(), 3, "has no module 3"),
    )
    for model, head, message in wrong:
        with pytest.raises(UnsupportedModelError, match=message):
            salve.attach(model, head=head, probe=PROBE)
    with pytest.raises(UnsupportedModelError, match=r"attach\(model, head='fc'\)"):
        salve.attach(Own())


@pytest.mark.usefixtures("untyped")
def test_a_bare_model_is_told_to_be_attached() -> None:
    model = Own()
    hooked = salve.attach(model, head="fc", probe=PROBE)
    acts = salve.record(hooked, LOADER, progress=False)
    sae = salve.fit(acts, "l1", n_latents=6, steps=5)
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    bare: Any = model
    calls: Iterable[Callable[[], object]] = (
        lambda: salve.record(bare, LOADER),
        lambda: salve.suppress(bare, sae, latent=0, strength=0.5),
        lambda: salve.enhance(bare, sae, latent=0, strength=0.5),
        lambda: salve.edit_at(bare, "unembed.hook_in", edit.operator),
        lambda: salve.alpha_crit(bare, edit, acts),
        lambda: salve.search_alpha_crit(bare, edit, LOADER),
        lambda: salve.LayerGradFam.of(bare, sae),
        lambda: salve.maximize(bare, sae, 0),
        lambda: salve.quality(sae, acts, hooked=bare),
        lambda: salve.assess(bare, edit, LOADER),
        lambda: salve.choose(bare, salve.SuppressClass(0), acts),
    )
    for call in calls:
        with pytest.raises(InputError, match=r"salve\.attach\(model\)"):
            call()


class Hidden(Own):
    """Two blocks that no numbers name, and a hidden layer without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.mixer = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.mlp = nn.Sequential(nn.Linear(16, 12), nn.GELU())
        self.fc = nn.Linear(12, 3)
        del self.body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.mlp(self.mixer(self.stem(x)).mean((2, 3))))
        return logits


def test_named_blocks_are_measured_sites_that_can_be_edited() -> None:
    model = Hidden().eval()
    hooked = salve.attach(model, head=model.fc, blocks=["stem", model.mixer, "mlp.0"], probe=PROBE)
    names = [f"blocks.{number}.hook_resid_post" for number in range(3)]
    stem, mixer, hidden = (hooked.site(name) for name in names)
    assert [site.layout for site in (stem, mixer, hidden)] == ["nchw", "nchw", "pooled"]
    assert (stem.width, mixer.width, hidden.width) == (8, 16, 12)
    # The next convolution is all that reads the stem; the hidden layer is made by one layer alone.
    assert stem.readers == ("mixer.0",)
    assert hidden.writers == ("mlp.0",)
    acts = salve.record(hooked, LOADER, names[2], progress=False)
    with torch.no_grad():
        expected = model.mlp[0](model.mixer(model.stem(IMAGES)).mean((2, 3)))
    torch.testing.assert_close(acts.tensor(), expected)
    sae = salve.fit(acts, "l1", n_latents=6, steps=10)
    edit = salve.suppress(hooked, sae, latent=0, strength=0.5)
    reach = edit.gate.reach.float()
    with torch.no_grad(), edit.applied(model):
        after = model.mlp[0](model.mixer(model.stem(IMAGES)).mean((2, 3)))
    torch.testing.assert_close(after, expected * (1 - 0.5 * reach).clamp(min=0))


@pytest.mark.usefixtures("untyped")
def test_modules_that_are_no_blocks_are_refused() -> None:
    model = Hidden()
    unused = nn.Linear(4, 4)
    model.add_module("unused", unused)
    wrong: Iterable[tuple[Any, str]] = (
        ("nothing", "has no module 'nothing' to be a block"),
        (nn.ReLU(), "has no module ReLU"),
        ("unused", "'unused' cannot be a block: it ran 0 times"),
    )
    for block, message in wrong:
        with pytest.raises(UnsupportedModelError, match=message):
            salve.attach(model, head="fc", blocks=[block], probe=PROBE)
    with pytest.raises(InputError, match="head="):
        salve.attach(plain(), blocks=["layer1"])
