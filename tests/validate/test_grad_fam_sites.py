"""Where the layer and the dictionary's site are, and how they are laid out: said, never guessed."""

from inspect import unwrap
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from salve_plugin.errors import AttributionError, InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Layout, Side, Site
from salve_plugin.validate.grad_fam import LayerGradFam
from salve_plugin.validate.module_sides import ActivationLike, as_module_side


class Arranged(nn.Module):
    """A map (batch, C, h, w) in a layout; tokens are led by `prefix` tokens, their mean."""

    def __init__(self, layout: Layout, prefix: int = 0) -> None:
        super().__init__()
        self.layout, self.prefix = layout, prefix

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "nchw":
            return x.clone()
        if self.layout == "nhwc":
            return x.movedim(1, 3).contiguous()
        if self.layout == "pooled":
            return x.mean((2, 3))
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True).expand(-1, self.prefix, -1), tokens], 1)

    def back(self, x: Tensor, height: int) -> Tensor:
        """Return the map again."""
        if self.layout == "nchw":
            return x
        if self.layout == "nhwc":
            return x.movedim(3, 1)
        return x[:, self.prefix :].transpose(1, 2).reshape(len(x), x.shape[2], height, -1)


class Net(nn.Module):
    """A layer, then a nonlinear mix of its channels, then a site, each in a layout of its own."""

    def __init__(self, channels: int, height: int, layer: Arranged, site: Arranged) -> None:
        super().__init__()
        self.height, self.layer, self.site = height, layer, site
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        self.register_buffer("mix", mix)
        self.mix: Tensor

    def mixed(self, x: Tensor) -> Tensor:
        return torch.einsum("ck,bkhw->bchw", self.mix, x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.site(self.mixed(self.layer.back(self.layer(x), self.height)))
        return made


def image(channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, channels, height, width, generator=generator, dtype=torch.float64)


def expected(net: Net, x: Tensor, dictionary: Any, latent: int) -> Tensor:
    """Return the map by the formula, in NCHW throughout."""
    leaf = x.clone().requires_grad_()
    # Prefix tokens are the mean of the patches, so that the mean over all is that over patches.
    latents = dictionary.pre_activation(net.mixed(leaf).movedim(1, 3)).mean((1, 2))
    if net.site.layout == "pooled":
        latents = dictionary.pre_activation(net.mixed(leaf).mean((2, 3)))
    (gradient,) = torch.autograd.grad(latents[:, latent].sum(), leaf)
    return (gradient.mean((2, 3), keepdim=True) * x).sum(1, keepdim=True)


def site_of(name: str, part: Arranged, channels: int, grid: tuple[int, int]) -> Site:
    shown = grid if part.layout == "tokens" else None
    return Site(f"{name}.hook_out", name, "out", part.layout, channels, part.prefix, shown)


@given(
    channels=st.integers(2, 3),
    height=st.integers(2, 3),
    width=st.integers(2, 3),
    layer_layout=st.sampled_from(("nchw", "nhwc", "tokens")),
    site_layout=st.sampled_from(("nchw", "nhwc", "tokens", "pooled")),
    prefixes=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    form=st.sampled_from(("sites", "of", "places")),
)
@settings(deadline=None)
def test_every_pair_of_layouts_gives_the_formula_s_map(
    channels: int,
    height: int,
    width: int,
    layer_layout: Layout,
    site_layout: Layout,
    prefixes: tuple[int, int],
    form: str,
) -> None:
    layer = Arranged(layer_layout, prefixes[0] if layer_layout == "tokens" else 0)
    read = Arranged(site_layout, prefixes[1] if site_layout == "tokens" else 0)
    net, x = Net(channels, height, layer, read), image(channels, height, width)
    grid = (height, width)
    sites = [site_of("layer", layer, channels, grid), site_of("site", read, channels, grid)]
    dictionary = Encoding(channels, sites[1])
    if form == "sites":
        fam = LayerGradFam(net, sites[0], dictionary, site=sites[1])
    elif form == "of":
        hooked = HookedModel(net, sites, attribution_site=None, description={})
        fam = LayerGradFam.of(hooked, cast(Any, dictionary), layer=sites[0])
    else:  # the dictionary's own site says what a cube does not show
        tokens = {"nchw": None, "nhwc": "NHWC", "tokens": (layer.prefix, grid)}[layer_layout]
        fam = LayerGradFam(
            net, (layer, "out"), dictionary, site=read, tokens=cast(Any, tokens)
        )  # fmt: skip
    torch.testing.assert_close(fam.attribute(x, 1), expected(net, x, dictionary, 1))


class Encoding(nn.Module):
    """An affine encoder that may know where it was trained."""

    def __init__(self, width: int, site: Site | None = None) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        weight = torch.randn(3, width, generator=generator, dtype=torch.float64)
        self.register_buffer("weight", weight)
        self.weight: Tensor
        self.site, self.width, self.n_latents = site, width, 3

    def pre_activation(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + 0.5

    def encode(self, x: Tensor) -> Tensor:
        return self.pre_activation(x).relu()


LAYER = Site("layer.hook_out", "layer", "out", "nchw", 8)
READ = Site("site.hook_out", "site", "out", "nhwc", 8)


@pytest.fixture
def cube() -> Net:
    """An NHWC site of 8 x 8 x 8 behind an NCHW layer of 8 x 8 x 8."""
    return Net(8, 8, Arranged("nchw"), Arranged("nhwc"))


def test_a_cube_is_settled_by_either_site_and_refused_without(cube: Net) -> None:
    x, plain, trained = image(8, 8, 8), Encoding(8), Encoding(8, READ)
    right = expected(cube, x, plain, 2)
    forms: list[tuple[ActivationLike, Encoding, ActivationLike]] = [
        (LAYER, plain, READ),
        (cube.layer, plain, READ),
        (LAYER, trained, (cube.site, "out")),
        ((cube.layer, "out"), trained, cube.site),
    ]
    for layer, dictionary, site in forms:
        heat = LayerGradFam(cube, layer, dictionary, site=site).attribute(x, 2)
        torch.testing.assert_close(heat, right)
    for model in (nn.DataParallel(cube), HookedModel(cube, [READ], attribution_site=None,
                                                     description={})):  # fmt: skip
        heat = LayerGradFam(model, LAYER, plain, site=READ).attribute(x, 2)
        torch.testing.assert_close(heat, right)
    for tokens in (None, "NHWC"):
        fam = LayerGradFam(
            cube, cube.layer, plain, site=(cube.site, "out"), tokens=cast(Any, tokens)
        )
        with pytest.raises(InputError, match=r"\(2, 8, 8, 8\).*site=salve\.Site"):
            fam.attribute(x, 2)


def test_where_the_layer_is_the_site_its_tokens_describe_it_and_must_be_right(cube: Net) -> None:
    x, dictionary = image(8, 8, 8), Encoding(8)
    place: tuple[nn.Module, Side] = (cube.site, "out")
    made = cube(x)
    closed = (made * dictionary.weight[1] / 64).sum(3)[:, None]
    fam = LayerGradFam(cube, cube.site, dictionary, site=place, tokens="NHWC")
    torch.testing.assert_close(fam.attribute(x, 1), closed)
    wrong = LayerGradFam(cube, cube.site, Encoding(8, READ), site=place)
    with pytest.raises(InputError, match=r"axis 3.*pass tokens='NHWC'"):
        wrong.attribute(x, 1)
    oblong = Net(8, 4, Arranged("nchw"), Arranged("nhwc"))
    wrong = LayerGradFam(oblong, oblong.site, dictionary, site=(oblong.site, "out"))
    with pytest.raises(InputError, match=r"axis 3.*pass tokens='NHWC'"):
        wrong.attribute(image(8, 4, 5), 1)


def test_an_input_may_be_named_as_the_layer(cube: Net) -> None:
    x, dictionary = image(8, 8, 8), Encoding(8)
    named = LayerGradFam(cube, (cube.layer, "in"), dictionary, site=READ)
    asked = LayerGradFam(cube, cube.layer, dictionary, site=READ)
    heat = named.attribute(x, 1)
    assert torch.equal(heat, asked.attribute(x, 1, attribute_to_layer_input=True))
    as_site = Site("layer.hook_in", "layer", "in", "nchw", 8)
    again = LayerGradFam(cube, as_site, dictionary, site=READ).attribute(x, 1)
    assert torch.equal(heat, again)


@pytest.mark.parametrize(
    ("layer", "site", "tokens", "error", "message"),
    [
        (LAYER, READ, "NHWC", InputError, "leave tokens out"),
        (Site("a", "layer", "out", "pooled", 8), READ, None, AttributionError, "no map or patch"),
        (Site("a", "layer", "out", "tokens", 8), READ, None, AttributionError, "no map or patch"),
        (Site("a", "nowhere", "out", "nchw", 8), READ, None, InputError, "no module 'nowhere'"),
        (LAYER, Site("b", "site", "out", "nhwc", 9), None, InputError, "reads 8 features"),
        (LAYER, Site(READ.name, "site", "out", "nchw", 8), None, InputError, "'nhwc'.*'nchw'"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(
    cube: Net, layer: Any, site: Any, tokens: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LayerGradFam(cube, layer, Encoding(8, READ), site=site, tokens=tokens)


@pytest.mark.parametrize("where", ["site.hook_out", [LAYER], (nn.Identity(), "middle")])
def test_what_names_no_place_is_refused(cube: Net, where: Any) -> None:
    with pytest.raises(InputError, match=r"layer .* must be one module.*loop over several"):
        unwrap(as_module_side)(where, cube, "layer")  # past the run's type checks


def test_a_site_needs_the_model_that_it_is_in(cube: Net) -> None:
    with pytest.raises(InputError, match=r"forward_func is a function.*\(module, 'out'\)"):
        LayerGradFam(lambda x: cube(x), LAYER, Encoding(8), site=READ)


@pytest.mark.parametrize("layout", ["pooled", "tokens"])
def test_an_activation_in_another_layout_than_its_site_s_is_refused(
    cube: Net, layout: Layout
) -> None:
    fam = LayerGradFam(cube, LAYER, Encoding(8), site=Site("b", "site", "out", layout, 8))
    with pytest.raises(InputError, match=rf"\(2, 8, 8, 8\).*'{layout}'"):
        fam.attribute(image(8, 8, 8), 0)
