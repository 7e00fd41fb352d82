"""The pretrained network is really the published one, and sees what is in the photographs."""

from importlib import resources
from pathlib import Path

import pytest
import timm
import torch

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.demo import pretrained
from salve_plugin.errors import ReadError


def test_the_network_names_what_the_photographs_show() -> None:
    network, names = pretrained.load_network(), pretrained.class_names()
    transform = installed_adapters()["timm"].transform(network)
    shown = {photo.name: photo.image for photo in pretrained.photos()}
    images = torch.stack([transform(shown[name]) for name in ("coffee", "chelsea", "flower")])
    with torch.no_grad():
        seen = attach(network)(images).argmax(1).tolist()
    assert [names[label] for label in seen] == ["espresso", "tiger cat", "daisy"]


def test_every_photograph_opens_in_colour() -> None:
    photos = pretrained.photos()
    assert len(photos) == len(pretrained.SKIMAGE_PHOTOS) + len(pretrained.SKLEARN_PHOTOS)
    assert all(photo.image.mode == "RGB" and min(photo.image.size) >= 300 for photo in photos)


def test_the_architecture_of_almost_the_same_name_would_be_silently_wrong() -> None:
    # Same keys and shapes, so nothing fails; the padding and batch-norm epsilon differ.
    other = timm.create_model("efficientnet_lite0", pretrained=False)
    path = Path(str(resources.files(pretrained.PACKAGE))) / "models" / pretrained.FILE
    state = torch.load(path, map_location="cpu", weights_only=True)
    other.load_state_dict(pretrained.renamed(state, other))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        difference = (other.eval()(images) - pretrained.load_network()(images)).abs().max()
    assert difference > 0.5


def test_renaming_changes_no_tensor() -> None:
    network = pretrained.load_network()
    path = Path(str(resources.files(pretrained.PACKAGE))) / "models" / pretrained.FILE
    state = torch.load(path, map_location="cpu", weights_only=True)
    renamed = pretrained.renamed(state, network)
    assert [id(value) for value in renamed.values()] == [id(value) for value in state.values()]
    assert set(renamed) == set(network.state_dict())


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(ReadError, match=r"SHA-256 is 57934424.*reinstall"):
        pretrained.load_network()


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "PACKAGE", "no_such_package")
    with pytest.raises(ReadError, match=r"pip install 'salve-plugin\[demo\]'"):
        pretrained.load_network()
