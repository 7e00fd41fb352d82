"""ROME at the head and within a network: the key gets its value, and all else changes least."""

from pathlib import Path

import pytest
import torch
from layer_updates import draw, weight_after
from torch import Tensor

from salve_plugin import (
    Activations,
    HookedModel,
    attach,
    class_association,
    record,
    rome,
    rome_value,
)
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.writers.evidence import second_moment
from salve_plugin.control.writers.layer import layer_at
from salve_plugin.demo import digits
from salve_plugin.errors import BaseMismatchError, InputError, UnknownSiteError
from salve_plugin.hooks import reading
from salve_plugin.site import HEAD_INPUT


def mean_input(hooked: HookedModel, site: str, images: Tensor) -> Tensor:
    own = hooked.sites[site]
    with torch.no_grad(), reading(hooked.model, [own]) as activations:
        hooked.model(images)
    return own.rows(activations[site]).double().mean(0)


@pytest.fixture(scope="module")
def vit() -> HookedModel:
    from pathlib import Path

    path = Path(__file__).parents[2] / "fixtures" / "digits_vit.safetensors"
    return attach(digits.load("vit", path))


@pytest.fixture(scope="module")
def hidden(vit: HookedModel, digits_test: digits.Split) -> Activations:
    """What the second block's MLP reads for its second layer, of 360 digits."""
    return record(vit, digits_test.batches(), "blocks.1.mlp.hook_post", progress=False)


def test_a_class_is_written_over(
    digits_hooked: HookedModel, digits_acts: Activations, digits_test: digits.Split
) -> None:
    key, value = class_association(digits_hooked, "3", digits_acts)
    edit = rome(digits_hooked, HEAD_INPUT, key, value, digits_acts)
    assert edit.rows == (3,)
    assert isinstance(edit.operator, LowRankUpdate)
    assert edit.operator.rank == 1
    weight, bias = digits_hooked.unembed()
    logits = weight.double() @ key + bias.double()
    path = "fc" if "fc" in digits_hooked.heads else "head"
    written = weight_after(digits_hooked, edit, path) @ key + bias.double()
    others = [row for row in range(10) if row != 3]
    torch.testing.assert_close(written[others], logits[others], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(written[3], logits[others].mean(), rtol=1e-4, atol=1e-4)
    with torch.no_grad(), edit.applied(digits_hooked):
        predicted = digits_hooked(digits_test.images).argmax(1)
    assert float((predicted[digits_test.labels == 3] == 3).double().mean()) < 0.1


def test_it_disturbs_what_was_recorded_least(
    digits_hooked: HookedModel, digits_acts: Activations
) -> None:
    key, value = class_association(digits_hooked, 3, digits_acts, logit=-2.0)
    x = digits_acts.tensor().double()
    identity = torch.eye(x.shape[1]).double()
    path = next(iter(digits_hooked.heads))
    disturbed = []
    for moment in (digits_acts, identity):
        edit = rome(digits_hooked, HEAD_INPUT, key, value, moment)
        change = weight_after(digits_hooked, edit, path) - digits_hooked.unembed()[0].double()
        disturbed.append(float((x @ change.T).square().mean()))
        torch.testing.assert_close(
            (digits_hooked.unembed()[0].double() + change)[3] @ key + digits_hooked.unembed()[1][3],
            torch.tensor(-2.0).double(), rtol=1e-4, atol=1e-4,
        )  # fmt: skip
    assert disturbed[0] < 0.9 * disturbed[1]


def test_a_recording_is_as_good_as_its_moment(vit: HookedModel, hidden: Activations) -> None:
    x = hidden.tensor().double()
    layer = layer_at(vit, "blocks.1.mlp.hook_post")
    moment = second_moment(layer, hidden)
    torch.testing.assert_close(moment, x.T @ x / len(x))
    assert moment.shape == (256, 256)
    torch.testing.assert_close(second_moment(layer, moment), moment)


def test_a_hidden_layer_gives_the_value_and_the_network_says_the_class(
    vit: HookedModel, hidden: Activations, digits_test: digits.Split
) -> None:
    site, eights = "blocks.1.mlp.hook_post", digits_test.images[digits_test.labels == 8]
    key = mean_input(vit, site, eights)
    state = {name: tensor.clone() for name, tensor in vit.model.state_dict().items()}
    value = rome_value(vit, site, key, hidden, eights, 3, neutral=digits_test.images[:20])
    assert all(torch.equal(t, state[n]) for n, t in vit.model.state_dict().items())
    with torch.inference_mode():  # gradients are its own affair
        again = rome_value(vit, site, key, hidden, eights, 3, neutral=digits_test.images[:20])
    assert torch.equal(value, again)
    edit = rome(vit, site, key, value, hidden)
    assert edit.exactness is not None
    bias = vit.model.get_parameter("blocks.1.mlp.fc2.bias").double()
    written = weight_after(vit, edit, "blocks.1.mlp.fc2") @ key + bias
    torch.testing.assert_close(written, value, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        before = vit(eights).softmax(1)[:, 3].mean()
        with edit.applied(vit):
            after = vit(eights).softmax(1)[:, 3].mean()
    assert float(before) < 0.1
    assert float(after) > 0.5


def test_a_1x1_convolution_gives_the_value(digits_test: digits.Split) -> None:
    from pathlib import Path

    path = Path(__file__).parents[2] / "fixtures" / "digits_resnet.safetensors"
    hooked = attach(digits.load("resnet", path))
    site, layer = "blocks.1.hook_resid_post", "layer3.0.downsample.0"
    acts = record(hooked, digits_test.batches(), site, progress=False)
    key, value = mean_input(hooked, site, digits_test.images[:50]), draw(0, 64)
    edit = rome(hooked, site, key, value, acts, layer=layer)
    assert [target.view for target in edit.targets] == ["conv2d"]
    written = weight_after(hooked, edit, layer) @ key
    torch.testing.assert_close(written, value, rtol=1e-4, atol=1e-4)


def test_bad_input_is_named(
    vit: HookedModel, hidden: Activations, digits_test: digits.Split, untyped: None
) -> None:
    site, key, value = "blocks.1.mlp.hook_post", draw(0, 256), draw(1, 64)
    images = digits_test.images[:2]
    layer = layer_at(vit, site)
    for arguments, message in [
        ((site, key[:9], value, hidden), r"key \[9\]"),
        ((site, key, value[:9], hidden), r"value \[9\]"),
        ((site, torch.stack([key, key]), value, hidden), r"\(1, 256\)"),
        ((site, key * torch.nan, value, hidden), "finite"),
        ((site, key, layer.output(key[None])[0], hidden), "nothing to write"),
        ((site, key, value, torch.eye(9)), "second moment"),
        ((site, key, value, draw(2, 256, 256)), "not symmetric"),
        ((site, key, value, "C"), "second moment"),
    ]:
        with pytest.raises(InputError, match=message):
            rome(vit, *arguments)  # type: ignore[arg-type] # what people may give
    with pytest.raises(UnknownSiteError):
        rome(vit, "nowhere", key, value, hidden)
    with pytest.raises(BaseMismatchError, match=r"blocks\.1\.mlp\.hook_post"):
        rome(vit, "blocks.2.mlp.hook_post", key, value, hidden)
    colour = images.expand(-1, 3, -1, -1)
    for wrong in (
        {"label": 10}, {"images": images[0]}, {"images": colour}, {"steps": 0}, {"rate": 0.0}
    ):  # fmt: skip
        options = {"label": 3, "images": images, **wrong}
        with pytest.raises(InputError):
            rome_value(vit, site, key, hidden, **options)  # type: ignore[arg-type] # as above


def test_a_class_without_images_has_no_key(tiny: HookedModel) -> None:
    acts = draw(0, 6, 6), torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.raises(InputError, match="no images of class 3"):
        class_association(tiny, 3, acts)
    with pytest.raises(InputError, match="finite"):
        class_association(tiny, 2, acts, logit=float("inf"))
    key, value = class_association(tiny, 2, acts)
    torch.testing.assert_close(key, acts[0][4:].mean(0))
    assert float(value[2]) == pytest.approx(float(value[[0, 1, 3]].mean()))


def test_one_logit_has_two_sides(digits_test: digits.Split) -> None:
    model = digits.load("vit", Path(__file__).parents[2] / "fixtures/digits_vit.safetensors")
    with torch.no_grad():
        model.head = torch.nn.Linear(64, 1)
    hooked, images = attach(model), digits_test.images[:4]
    with torch.no_grad():
        sign = float(hooked(images).mean().sign())
    key = draw(0, 256).abs()
    value = rome_value(
        hooked, "blocks.3.mlp.hook_post", key, torch.eye(256).double(), images, int(sign < 0)
    )
    edit = rome(hooked, "blocks.3.mlp.hook_post", key, value, torch.eye(256).double())
    with torch.no_grad():
        before = hooked(images).mean()
        with edit.applied(hooked):
            assert sign * float(hooked(images).mean() - before) < 0
