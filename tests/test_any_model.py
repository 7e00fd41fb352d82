"""Models that no family knows: wrapped ones, and one's own with a linear head."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.errors import InputError, UnsupportedModelError

IMAGES = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LOADER = [(IMAGES, torch.arange(40) % 3)]
PROBE = IMAGES[:2]


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
    ("model", "path", "head"),
    [(nn.Sequential(nn.Identity(), plain()), "1", "1.fc"), (Backbone(), "backbone", "head")],
)
def test_the_known_model_inside_is_named(model: nn.Module, path: str, head: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"inside: ResNet at '{path}'") as error:
        salve.attach(model)
    assert f"attach(model, head='{head}')" in str(error.value)


def test_the_head_of_an_unknown_family_is_named_as_it_is_called_there() -> None:
    model = torchvision.models.mobilenet_v3_small(num_classes=3)
    with pytest.raises(UnsupportedModelError, match=r"attach\(model, head='classifier.3'\)"):
        salve.attach(model)


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


class Attention(nn.Module):
    """As written by hand: the pattern, and queries by head, are outputs of modules."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.query_norm = nn.LayerNorm(width), nn.LayerNorm(width // heads)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax, self.dropout = nn.Softmax(-1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, _ = x.shape
        split = self.qkv(self.norm(x)).reshape(images, tokens, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        pattern = self.dropout(self.softmax(self.query_norm(q) @ k.transpose(-1, -2)))
        mixed: Tensor = self.out((pattern @ v).transpose(1, 2).flatten(2))
        return mixed


class Transformer(nn.Module):
    """A vision transformer of one's own: nothing says how many tokens lead, or on what grid."""

    def __init__(self, leading: int, pool: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        width, self.pool, self.leading = 16, pool, leading
        self.embed = nn.Linear(3 * 8 * 8, width)
        self.first = nn.Parameter(torch.randn(1, leading, width))
        self.positions = nn.Parameter(torch.randn(1, 32, width))
        self.dropout = nn.Dropout(0.1)
        pairs = ((Attention(width, 2), nn.Linear(width, width)) for _ in range(2))
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2] // 8, x.shape[3] // 8
        x = x.reshape(-1, 3, rows, 8, columns, 8).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = self.embed(x) + self.positions[:, : rows * columns]
        x = self.dropout(torch.cat([self.first.expand(len(x), -1, -1), x], 1))
        for pair in self.layers:
            attention, mlp = pair.children()
            x = x + attention(x)
            x = x + mlp(x).relu()
        x = self.norm(x)
        logits: Tensor = self.head(x[:, 0] if self.pool == "first" else x.mean(1))
        return logits


@pytest.mark.parametrize(
    ("leading", "pool"), [(1, "first"), (5, "first"), (5, "mean"), (0, "mean")]
)
@pytest.mark.parametrize("sides", [(32, 32), (32, 64), (16, 64)])
def test_tokens_of_a_transformer_of_ones_own_lie_where_they_are(
    leading: int, pool: str, sides: tuple[int, int]
) -> None:
    images = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    hooked = salve.attach(Transformer(leading, pool), head="head", probe=images)
    site = hooked.attribution_site
    assert site is not None
    assert site.module == ("layers.1.0.norm" if pool == "first" else "norm")
    assert (site.layout, site.prefix_tokens) == ("tokens", leading)
    assert site.grid == (sides[0] // 8, sides[1] // 8)
    # What a branch adds is no residual stream.
    assert not [name for name in hooked.sites if "hook_resid" in name]


class Shortcut(nn.Module):
    """What it adds is behind its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))  # type: ignore[no-any-return] # nn.Module returns Any


@pytest.mark.parametrize(
    ("behind", "deepest"),
    [
        ([], "body"),
        ([nn.Conv2d(8, 8, 1), nn.ReLU()], "body"),  # the norm is shallower
        ([nn.AdaptiveAvgPool2d(1)], "body.0"),  # its map has one position
        ([nn.AdaptiveAvgPool2d(1), nn.GroupNorm(1, 8)], "body.0"),
    ],
)
@pytest.mark.parametrize("sides", [(32, 32), (32, 48)])
def test_maps_of_a_convolutional_network_of_ones_own_are_of_the_deepest_map(
    behind: list[nn.Module], deepest: str, sides: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = Own()
    model.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 4, 4), Shortcut()), *behind)
    model.fc = nn.Linear(8, 3)
    images = torch.randn(2, 3, *sides)
    site = salve.attach(model, head="fc", probe=images).attribution_site
    assert site is not None
    shown: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: shown.update({name: out}))
    model.eval()(images)
    assert torch.equal(shown[site.module], shown[deepest])


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_transformer_within_another_module_keeps_its_tokens(pool: str) -> None:
    inner = timm.create_model("test_vit", num_classes=3, img_size=64, global_pool=pool)
    hooked = salve.attach(nn.Sequential(nn.Identity(), inner), head="1.head")
    bare = salve.attach(inner)
    assert {*bare.sites} <= {*hooked.sites, "ln_final.hook_normalized"}
    site = hooked.attribution_site
    assert site is not None
    assert (site.layout, site.prefix_tokens, site.grid) == ("tokens", 1, (4, 4))


class Keywords(Own):
    """Called as transformers' models are."""

    def forward(self, *, pixel_values: Tensor) -> Any:  # type: ignore[override] # on purpose
        return {"logits": super().forward(pixel_values)}


class Several(Own):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class LogitsOf(nn.Module):
    """The module that the message asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images)["logits"]
        return logits


def test_a_model_that_is_called_otherwise_goes_into_a_module_that_is_not() -> None:
    for model in (Keywords(), Several()):
        with pytest.raises(UnsupportedModelError, match=r"forward\(images\) returns the logits"):
            salve.attach(model, head="fc", probe=PROBE)
    hooked = salve.attach(LogitsOf(Keywords()), head="model.fc", probe=PROBE)
    assert hooked.site("unembed.hook_in").readers == ("model.fc",)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_torchscript_is_evaluated_and_refused_where_hooks_are_needed() -> None:
    model = plain().eval()
    script = torch.jit.trace(model, PROBE)  # type: ignore[no-untyped-call] # torch leaves it so
    for head in (None, "fc"):
        with pytest.raises(UnsupportedModelError, match="TorchScript runs no hooks"):
            salve.attach(script, head=head)
    loader = [(PROBE, torch.zeros(len(PROBE), dtype=torch.int64))]
    evaluated = (salve.evaluate(one, loader) for one in (script, model))
    assert len({each.overall for each in evaluated}) == 1
