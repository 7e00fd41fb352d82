"""Labels of a data set are the model's class indices, are made so by name, or are refused."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import salve_plugin as salve
from salve_plugin.adapter import attach
from salve_plugin.control.evaluate import evaluate
from salve_plugin.discover.recording.labels import (
    Labels,
    model_classes,
    n_outputs,
    unique_names,
)
from salve_plugin.discover.recording.stream import record
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel


class Named(Dataset[tuple[Tensor, int]]):
    """Six images whose classes have names, as torchvision's folders do."""

    def __init__(self, *classes: str) -> None:
        """Take the names."""
        self.classes = list(classes)

    def __len__(self) -> int:
        """Return the number of images."""
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label among the names."""
        random = torch.Generator().manual_seed(index)
        return torch.rand(3, 64, 64, generator=random), index % len(self.classes)


def loader(*classes: str) -> DataLoader[Any]:
    return DataLoader(Named(*classes), batch_size=4)


def hooked(n: int = 1000) -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = timm.create_model("test_resnet", num_classes=n).eval()
    return attach(model)


def test_names_of_some_of_the_models_classes_give_its_own_indices() -> None:
    acts = record(hooked(), loader("church", "n03425413", "Garbage truck"), progress=False)
    assert acts.labels().tolist() == [497, 571, 569] * 2  # torchvision's and timm's indices
    assert (acts.n_classes, len(acts.classes or ())) == (1000, 1000)
    assert acts.classes is not None
    assert acts.classes[497] == "church"
    assert acts.classes[0] == "tench"


def gate(model: HookedModel) -> salve.Edit:
    width = model.sites["unembed.hook_in"].width
    return salve.edit_at(
        model, "unembed.hook_in", salve.Gate(torch.ones(1, width) / width**0.5, 3.0)
    )


def dictionary_of(model: HookedModel) -> salve.Dictionary:
    recorded = record(model, [(torch.rand(8, 3, 64, 64), torch.arange(8) % 4)], progress=False)
    return salve.fit(recorded, "l1", n_latents=4, batch_size=4, steps=1)


MEASURED: dict[str, Callable[[HookedModel, Iterable[Any]], object]] = {
    "critical strengths": lambda model, images: (
        salve.search_alpha_crit(model, gate(model), images, steps=2, halvings=0).labels.tolist()
    ),
    "windows": lambda model, images: salve.fragility(
        model, {"gate": gate(model)}, images, multiples=(0.5, 1.0), contexts={"dim": torch.sqrt},
        judge=lambda before, after, labels: (float(labels.double().mean()) / 4, 0.0),
    ).windows,
    "scales": lambda model, images: salve.learn_scales(model, [gate(model)], images).loss_without,
    "effects": lambda model, images: (
        salve.class_effects(model, dictionary_of(model), images, candidates=1).counts.tolist()
    ),
}  # fmt: skip


@pytest.mark.parametrize("measure", MEASURED)
def test_whatever_is_measured_takes_them_as_the_models(measure: str) -> None:
    model, images = hooked(4), loader("2", "0")
    indices = [(x, torch.where(y == 0, 2, 0)) for x, y in images]
    assert MEASURED[measure](model, images) == MEASURED[measure](model, indices)


@pytest.mark.parametrize("names", [("cat", "dog"), ("church", "dog", "gas pump")])
def test_names_that_are_not_the_models_are_refused(names: tuple[str, ...]) -> None:
    model = hooked()
    for call in (
        lambda: record(model, loader(*names), progress=False),
        lambda: record(model, loader("a"), classes=names, progress=False),
        lambda: evaluate(model, loader(*names)),
    ):
        with pytest.raises(InputError, match=r"class names \[.*match no class .* has 1000.*=\(\)"):
            call()


def test_the_names_given_to_all_of_imagenets_classes_are_recognized_again() -> None:
    from salve_timm.create import imagenet_names

    names = imagenet_names(timm.create_model("resnet10t"))
    assert names is not None
    chosen = unique_names(names)
    assert model_classes(chosen, names, 1000) == (list(range(1000)), tuple(chosen))
    # Two classes differ by case only: `Cardigan`, a dog, and `cardigan`, a garment.
    indices, named = model_classes([known[0] for known in names[:300]], names, 1000)
    assert indices == list(range(300))
    assert model_classes(named, names, 1000) == (list(range(1000)), named)


def test_more_names_than_classes_and_other_classifiers_than_at_first_are_refused() -> None:
    model = hooked(5)
    with pytest.raises(InputError, match="has 5"):
        record(model, loader(*"abcdef"), progress=False)
    assert n_outputs(model) == 5
    cast(Any, model.model).reset_classifier(3)
    assert n_outputs(model) == 3
    with pytest.raises(InputError, match="has 3"):
        record(model, loader(*"abcde"), progress=False)
    assert record(model, loader(*"abc"), progress=False).classes == ("a", "b", "c")
    names = hooked()
    cast(Any, names.model).reset_classifier(3)  # its classes are no longer those that timm knows
    with pytest.raises(InputError, match="has 3"):
        record(names, loader("church", "gas pump"), progress=False)
    with pytest.raises(InputError, match=r"label 3 in batch 0 .* 0 to 2"):
        record(names, [(torch.rand(1, 3, 64, 64), [3])], progress=False)


def test_labels_can_be_said_to_be_the_models_already() -> None:
    acts = record(hooked(5), loader("a", "b"), classes=(), progress=False)
    assert acts.classes is None
    assert acts.n_classes == 5
    assert acts.labels().tolist() == [0, 1] * 3


def test_evaluate_counts_images_at_the_models_classes() -> None:
    model = hooked()
    confusion = evaluate(model, loader("church", "gas pump")).confusion
    assert confusion.sum(1).nonzero().flatten().tolist() == [497, 571]
    assert torch.equal(
        confusion, evaluate(model, [(x, y * 74 + 497) for x, y in loader("a", "b")]).confusion
    )


def test_a_label_without_a_name_is_refused() -> None:
    labels = Labels.of(hooked().model, 1000, loader("church", "gas pump"))
    assert labels.indices is not None
    with pytest.raises(InputError, match=r"label 497 .* names 2 classes, and the model has 1000"):
        record(
            hooked(), [(torch.rand(1, 3, 64, 64), [497])], classes=["church", "gas pump"],
            progress=False,
        )  # fmt: skip
