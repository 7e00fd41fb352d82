"""A study on disk: a timm model with a checkpoint, and an image folder of real digits."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from salve_plugin.cli import main
from salve_plugin.cli.images import open_image
from salve_plugin.demo import digits

PER_CLASS = 12


@pytest.fixture(scope="session")
def image_folder(digits_train: digits.Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real handwritten digits as PNG files, in one folder a class."""
    from salve_plugin.validate.pictures import stretched

    folder = tmp_path_factory.mktemp("images")
    train = digits_train
    for label, name in enumerate(digits.CLASSES):
        (folder / name).mkdir()
        for number, image in enumerate(train.images[train.labels == label][:PER_CLASS]):
            stretched(image).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def checkpoint(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's `test_resnet` whose classifier reads digits: ridge regression."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", num_classes=10).eval()
    from salve_plugin.adapter import attach, installed_adapters
    from salve_plugin.hooks import reading

    hooked, transform = attach(model), installed_adapters()["timm"].transform(model)
    paths = sorted(image_folder.glob("*/*.png"))
    labels = torch.tensor([int(path.parent.name) for path in paths])
    images = torch.stack([transform(open_image(path)) for path in paths])
    site = hooked.site("unembed.hook_in")
    with torch.no_grad(), reading(model, [site]) as seen:
        model(images)
    x = torch.cat([site.rows(seen[site.name]), torch.ones(len(labels), 1)], 1).double()
    goal = nn.functional.one_hot(labels, 10).double() * 10 - 1
    ridge = 1e-7 * x.square().mean() * torch.eye(x.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(x.T @ x / len(x) + ridge, x.T @ goal / len(x)).float()
    state = model.state_dict()
    state["fc.weight"], state["fc.bias"] = solution[:-1].T.contiguous(), solution[-1].contiguous()
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def study(image_folder: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the model."""
    folder = tmp_path_factory.mktemp("studies") / "study"
    with pytest.raises(SystemExit) as ended:
        main(
            ["discover", "--model", "test_resnet", "--checkpoint", str(checkpoint),
             "--num-classes", "10", "--data", str(image_folder), "--out", str(folder),
             "--latents", "16"]
        )  # fmt: skip
    assert ended.value.code == 0
    return folder
