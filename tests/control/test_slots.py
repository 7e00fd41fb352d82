"""Going through the modules of a model, as torch does."""

import timm
import torch
from torch import nn

from salve_plugin.control.slots import modules_of


def test_every_module_once_in_the_order_of_torch() -> None:
    shared = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nested = nn.Sequential(shared, nn.Linear(2, 2), shared[0])
    nested.register_module("nothing", None)
    model = nn.ModuleDict({"a": shared, "b": nested, "c": shared})
    with torch.device("meta"):
        network = timm.create_model("resnet18")
    for each in (model, network, nn.Identity()):
        assert list(map(id, modules_of(each))) == list(map(id, each.modules()))
