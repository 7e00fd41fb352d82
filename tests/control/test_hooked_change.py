"""An edit's change made by hooks, on whatever device the model is."""

from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from salve_plugin import Dictionary, HookedModel, suppress
from salve_plugin.control.hooked_change import changed_by_hooks


def test_rows_of_a_model_on_another_device_are_picked_there(
    make_tiny: Callable[[], HookedModel], atoms: Dictionary
) -> None:
    site = make_tiny().site("unembed.hook_in")
    edit = suppress(make_tiny(), atoms, latent=1, strength=1.0, rows=[0, 2])
    # Tensors without values, which know their device and refuse what a GPU would refuse.
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            model = make_tiny().model
        with changed_by_hooks(model, edit, site):
            assert model(torch.empty(5, 3, device="cuda")).device.type == "cuda"
