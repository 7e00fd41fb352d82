"""A tiny attached model, random dictionaries for it, and real recordings, shared by these tests."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import (
    Activations,
    Dictionary,
    HookedModel,
    Site,
    attach,
    find_concept,
    record,
)
from salve_plugin.demo import digits
from salve_plugin.discover.learners import create
from salve_plugin.site import HEAD_INPUT

FIXTURES = Path(__file__).parents[1] / "fixtures"
HEAD = Site(HEAD_INPUT, "head", "in", "pooled", 6, readers=("head",))


class Tiny(nn.Module):
    """Six features from a linear body, two layers that read them, one of them the classifier.

    The logits are the classifier's alone; the other layer runs, and is multiplied by zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 6)
        self.act = nn.ReLU()
        self.head = nn.Linear(6, 4)
        self.side = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.act(self.body(x))
        logits: Tensor = self.head(features)
        convolves = isinstance(self.side, nn.Conv2d)
        side = self.side(features[:, :, None, None] if convolves else features)
        silent: Tensor = 0 * side.flatten(1)[:, :4]
        return logits + silent


def random_dictionary(site: Site, n_latents: int = 8, seed: int = 0) -> Dictionary:
    draw = torch.Generator().manual_seed(seed)
    atoms = nn.functional.normalize(torch.randn(n_latents, site.width, generator=draw), dim=1)
    return Dictionary(
        {
            "atoms": atoms,
            "encoder_weight": atoms.clone(),
            "encoder_bias": torch.zeros(n_latents),
            "decoder_bias": torch.zeros(site.width),
        },
        create("l1", {}),
        site,
    )


def tiny_model() -> HookedModel:
    """Return a fresh hooked `Tiny`; `both` is a site with two readers, one a convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiny().eval()
    both = Site("both", "act", "out", "pooled", 6, readers=("head", "side"))
    blind = Site("blind", "body", "in", "pooled", 3)
    return HookedModel(
        model,
        [HEAD, both, blind],
        attribution_site=None,
        description={"family": "test", "architecture": "Tiny", "input_size": [3]},
    )


@pytest.fixture
def tiny() -> HookedModel:
    """A fresh hooked `Tiny`."""
    return tiny_model()


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[], HookedModel]:
    """Makes fresh copies of the same `Tiny`."""
    return tiny_model


@pytest.fixture(scope="session")
def make_dictionary() -> Callable[..., Dictionary]:
    """Makes a dictionary of random atoms: (site, n_latents=8, seed=0)."""
    return random_dictionary


@pytest.fixture(scope="session")
def atoms() -> Dictionary:
    """Eight random atoms of the tiny model's head input."""
    return random_dictionary(HEAD)


@pytest.fixture(scope="session", params=["resnet", "vit"])
def digits_hooked(request: pytest.FixtureRequest) -> HookedModel:
    """Both trained networks, attached; leave them as you find them."""
    return attach(digits.load(request.param, FIXTURES / f"digits_{request.param}.safetensors"))


@pytest.fixture(scope="session")
def digits_acts(digits_hooked: HookedModel, digits_test: digits.Split) -> Activations:
    """Head inputs of the 360 test digits."""
    return record(digits_hooked, digits_test.batches(), progress=False, classes=digits.CLASSES)


@pytest.fixture(scope="session")
def patched(
    digits_test: digits.Split, digits_hooked: HookedModel, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Digits with and without a bright bar at their upper edge, recorded at two sites."""
    plain, labels = digits_test.images[:180], digits_test.labels[:180]
    marked = plain.clone()
    marked[:, :, :3] = marked.max()
    folder: Path = tmp_path_factory.mktemp("patched")
    hidden = next(
        site.name for site in [*digits_hooked.sites.values()][-2::-1]
        if site.writers or site.readers
    )  # fmt: skip
    recorded = {}
    for site in ("unembed.hook_in", hidden):
        for kind, images in (("with", marked), ("without", plain)):
            loader = list(zip(torch.split(images, 60), torch.split(labels, 60), strict=True))
            path = folder / f"{site}-{kind}"
            recorded[site, kind] = record(
                digits_hooked, loader, site=site, folder=path, progress=False
            )
    concept = find_concept(
        recorded["unembed.hook_in", "with"], without=recorded["unembed.hook_in", "without"],
        name="bar",
    )  # fmt: skip
    return SimpleNamespace(
        hooked=digits_hooked, plain=plain, marked=marked, recorded=recorded, hidden=hidden,
        concept=concept,
    )  # fmt: skip
