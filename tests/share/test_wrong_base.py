"""An artifact on every model that it was not made for: refused, and the model is as it was."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_artifacts import random_dictionary, state_bytes
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import salve_plugin as salve
from salve_plugin.control.operators import scaled_weight
from salve_plugin.demo import digits
from salve_plugin.errors import BaseMismatchError, InputError, UnsupportedModelError
from salve_plugin.share.artifact import EditArtifact

FIXTURES = Path(__file__).parents[1] / "fixtures"
DEEPER: dict[str, dict[str, Any]] = {
    "test_resnet": {"layers": (2, 1, 1, 1)}, "test_vit": {"depth": 7},
    "test_convnext": {"depths": (1, 2, 4, 3)},
}  # fmt: skip
ROWS = (None, (1, 3))


def network(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    """Return a real network: one of the trained ones, or a small one of timm with 7 classes."""
    if name.startswith("digits_"):
        kind: Any = name.removeprefix("digits_")
        return digits.load(kind, FIXTURES / f"{name}.safetensors")
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name, **(dict[str, Any](num_classes=7) | arguments))
    return model.eval()


def head(model: nn.Module) -> nn.Linear:
    """Return the classifier."""
    (path,) = salve.attach(model).site("unembed.hook_in").readers
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer


def on_head(change: Callable[[Tensor], object]) -> Callable[[nn.Module], nn.Module]:
    """Return what changes the classifier's weight in place."""

    def changed(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            change(head(model).weight)
        return model

    return changed


def ulp(row: int, column: int) -> Callable[[Tensor], None]:
    def change(weight: Tensor) -> None:
        weight[row, column] = torch.nextafter(weight[row, column], torch.tensor(torch.inf))

    return change


def retrained(model: nn.Module) -> nn.Module:
    """Train the head for a few steps, as anybody does who takes a model over."""
    layer = head(model)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, layer.in_features, generator=generator)
        labels = torch.arange(16) % layer.out_features
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(x), labels).backward()  # type: ignore[no-untyped-call] # torch's
        optimizer.step()
    layer.requires_grad_(True).zero_grad()
    return model


def saved_in_edited_form(model: nn.Module) -> nn.Module:
    edit = salve.suppress(
        salve.attach(model), random_dictionary(salve.attach(model)), latent=7, strength=4.0
    )
    model.load_state_dict(edit.edited(model).state_dict())
    return model


def tied_to_another(model: nn.Module) -> nn.Module:
    layer = head(model)
    other = nn.Linear(layer.in_features, layer.out_features)
    layer.weight = other.weight
    return model


def parametrized(model: nn.Module) -> nn.Module:
    parametrizations.weight_norm(head(model))
    return model


def pruned(model: nn.Module) -> nn.Module:
    prune.l1_unstructured(head(model), "weight", amount=0.1)  # type: ignore[no-untyped-call] # torch's
    return model


def without_head(model: nn.Module) -> nn.Module:
    (path,) = salve.attach(model).site("unembed.hook_in").readers
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.Identity())
    return model


Change = Callable[[nn.Module], nn.Module]
SAME_SHAPE: dict[str, Change] = {
    "one ulp in a touched row": on_head(ulp(1, 0)),
    "one ulp in an untouched row": on_head(ulp(2, 5)),
    "one sign in the last place": on_head(lambda weight: weight[-1, -1:].neg_()),
    "other head order": on_head(lambda weight: weight.copy_(weight.roll(1, 0))),
    "two classes exchanged": on_head(lambda weight: weight[2:4].copy_(weight[2:4].flip(0))),
    "other order of features": on_head(lambda weight: weight.copy_(weight.flip(1))),
    "scaled": on_head(lambda weight: weight.mul_(1 + 2**-20)),
    "same shapes, head drawn anew": on_head(lambda weight: nn.init.normal_(weight)),
    "same shapes, retrained head": retrained,
    "already edited": saved_in_edited_form,
    "tied to another weight": tied_to_another,
}
OTHER_KIND: dict[str, Change] = {
    "double": lambda model: model.double(),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "parametrized": parametrized,
    "pruned": pruned,
    "no head": without_head,
}
NETWORKS = ("digits_resnet", "digits_vit", "test_resnet", "test_vit", "test_convnext")


def artifact_of(model: nn.Module, rows: tuple[int, ...] | None, folder: Path) -> EditArtifact:
    hooked = salve.attach(model)
    dictionary = random_dictionary(hooked)
    edit = salve.suppress(hooked, dictionary, latent=1, strength=2.0, rows=rows)
    EditArtifact.of(hooked, edit).save_pretrained(folder)
    return EditArtifact.from_pretrained(folder)


def wrong_bases(name: str) -> dict[str, nn.Module]:
    """Return every wrong base for an artifact of a network."""
    changed = {**SAME_SHAPE, **OTHER_KIND}
    bases = {kind: change(network(name)) for kind, change in changed.items()}
    bases |= {f"another network: {other}": network(other) for other in NETWORKS if other != name}
    if not name.startswith("digits_"):
        bases["other weights"] = network(name, seed=1)
        bases["other depth"] = network(name, **DEEPER[name])
        bases["other number of classes"] = network(name, num_classes=8)
    return bases


def assert_refused(artifact: EditArtifact, model: nn.Module, kind: str) -> None:
    before = state_bytes(model)
    with pytest.raises((BaseMismatchError, UnsupportedModelError)):
        artifact.edit.apply_(model)
    assert state_bytes(model) == before, kind
    assert salve.status(model).applied == (), kind


@pytest.mark.parametrize("name", NETWORKS)
def test_every_wrong_base_is_refused_and_left_bit_for_bit_as_it_was(
    name: str, tmp_path: Path
) -> None:
    refused = 0
    for rows in ROWS:
        right = network(name)
        artifact = artifact_of(right, rows, tmp_path / str(rows))
        for kind, model in wrong_bases(name).items():
            assert state_bytes(model) != state_bytes(right), kind
            assert_refused(artifact, model, kind)
            refused += 1
        artifact.edit.apply_(network(name))  # the right one is not refused
    assert refused == 2 * (21 if name.startswith("digits_") else 24)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["digits_resnet", "test_vit"])
def test_a_wrong_base_of_the_right_shape_is_edited_with_a_warning_if_that_is_asked_for(
    name: str, rows: tuple[int, ...] | None, tmp_path: Path
) -> None:
    artifact = artifact_of(network(name), rows, tmp_path)
    edit = artifact.edit
    (path,) = edit.base.tensors
    for kind, change in SAME_SHAPE.items():
        model = change(network(name))
        before = state_bytes(model)
        weight = model.get_parameter(path).detach().clone()
        with pytest.warns(UserWarning, match="is not the weight that edit"):
            edit.apply_(model, on_base_mismatch="warn")
        expected = scaled_weight(weight, edit.gate.directions[0], edit.gate.strength, rows=rows)
        assert torch.equal(model.get_parameter(path), expected), kind
        edit.revert_(model)
        assert state_bytes(model) == before, kind


def test_a_base_of_another_shape_is_refused_even_if_a_warning_would_do(tmp_path: Path) -> None:
    artifact = artifact_of(network("test_resnet"), (1, 6), tmp_path)
    for model in (
        network("test_vit"), network("test_convnext"), without_head(network("test_resnet")),
        parametrized(network("test_resnet")), network("test_resnet", num_classes=6),
    ):  # fmt: skip
        before = state_bytes(model)
        with pytest.raises((BaseMismatchError, UnsupportedModelError)):
            artifact.edit.apply_(model, on_base_mismatch="warn")
        with pytest.raises((BaseMismatchError, UnsupportedModelError, InputError)):
            artifact.revert_(model)
        assert state_bytes(model) == before


def test_what_is_checked_is_the_weights_that_the_edit_touches(tmp_path: Path) -> None:
    """Stated in docs/security.md as a limit: layers below may be others."""
    model = network("test_resnet")
    artifact = artifact_of(model, None, tmp_path)
    other = deepcopy(model)
    with torch.no_grad():
        other.get_parameter("conv1.0.weight").mul_(2)
    artifact.edit.apply_(other)
    (path,) = artifact.edit.base.tensors
    assert not torch.equal(other.get_parameter(path), model.get_parameter(path))
    assert not artifact.edit.match(other).rest
