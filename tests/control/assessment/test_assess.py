"""Every number of an assessment against a plain recount, on real networks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import recounted
import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin import Activations, Assessment, Dictionary, Edit, Gate, HookedModel, LowRankMap
from salve_plugin.control.assessment.tables import control_rows
from salve_plugin.control.writers.mask import CLEARANCE
from salve_plugin.demo import digits
from salve_plugin.errors import BaseMismatchError, EditStateError, InputError


def head(hooked: HookedModel) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    weight, bias = hooked.unembed()
    return weight.double().numpy(), bias.double().numpy()


def heads(hooked: HookedModel, edit: Edit) -> list[tuple[Any, Any]]:
    before = head(hooked)
    with edit.applied(hooked):
        return [before, head(hooked)]


def all_rows(hooked: HookedModel, atoms: Dictionary) -> Edit:
    return salve.suppress(hooked, atoms, latent=2, strength=6.0)


def two_rows(hooked: HookedModel, atoms: Dictionary) -> Edit:
    return salve.suppress(hooked, atoms, latent=[2, 5], strength=30.0, rows=[3, 7])


def map_with_offset(hooked: HookedModel, atoms: Dictionary) -> Edit:
    write = atoms.atoms[:2].T.double()
    operator = LowRankMap(write, write, torch.tensor([0.5, -0.25]), 0.0)
    return salve.edit_at(hooked, "unembed.hook_in", operator)


def enhanced(hooked: HookedModel, atoms: Dictionary) -> Edit:
    return salve.enhance(hooked, atoms, latent=2, strength=4.0, rows=[3])


def compared(found: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        for name, value in expected.items():
            compared(found[name], value, f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for pair in zip(found, expected, strict=True):
            compared(*pair, path)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("make", [all_rows, two_rows, map_with_offset, enhanced])
@pytest.mark.parametrize("target", [3, None])
def test_every_number_is_that_of_a_plain_recount(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, make: Any, target: int | None
) -> None:
    edit = make(resnet, atoms)
    x, labels = acts.tensor().double().numpy(), acts.labels().numpy()
    (old, b), (new, c) = heads(resnet, edit)
    before, after = x @ old.T + b, x @ new.T + c
    found = salve.assess(resnet, edit, acts, target=target).to_json()
    compared(found["effect"], recounted.effect(labels, before, after, target))
    assert [each["label"] for each in found["classes"]] == list(range(10))
    for each in found["classes"]:
        compared(each, recounted.outcome(each["label"], labels, before, after, (old, new)))
        assert each["bias_change"] == pytest.approx(float(c[each["label"]] - b[each["label"]]))
        assert each["name"] == digits.CLASSES[each["label"]]
    assert found["accuracy"] == float((before.argmax(1) == labels).mean())
    assert found["images"] == 360
    (weight, *bias) = sorted(found["budget"]["parameters"], key=lambda each: -len(each["path"]))
    change = new - old
    assert weight["norm"] == pytest.approx(np.linalg.norm(change))
    assert weight["relative"] == pytest.approx(np.linalg.norm(change) / np.linalg.norm(old))
    assert weight["changed"] == int((change != 0).sum())
    assert [each["path"] for each in bias] == (["fc.bias"] if (b != c).any() else [])
    assert found["budget"]["bytes"] == sum(t.nbytes for t in edit.tensors.values())


def test_the_controls_do_what_they_are_called(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    edit = two_rows(resnet, atoms)
    x, labels = acts.tensor().double().numpy(), acts.labels().numpy()
    (old, b), (new, _) = heads(resnet, edit)
    before = x @ old.T + b
    norm = float(np.linalg.norm(new - old))
    found = salve.assess(resnet, edit, acts, target=3, dictionary=atoms, seed=7)
    masked, zeroed = before.copy(), before.copy()
    masked[:, 3] = before.min() - (before.max() - before.min()) - CLEARANCE
    zeroed[:, 3] = b[3]
    compared(found.control("mask").effect.to_json(), recounted.effect(labels, before, masked, 3))
    compared(
        found.control("zero row").effect.to_json(), recounted.effect(labels, before, zeroed, 3)
    )
    assert found.control("zero row").norm == pytest.approx(np.linalg.norm(old[3]))
    means = x[labels == 3].mean(0) - x[labels != 3].mean(0)
    direction = means / np.linalg.norm(means)
    step = np.zeros_like(old)
    step[[3, 7]] = np.outer(old[[3, 7]] @ direction, direction)
    pushed = x @ (old - step * norm / np.linalg.norm(step)).T + b
    control = found.control("difference of means")
    compared(control.effect.to_json(), recounted.effect(labels, before, pushed, 3))
    names = [each.name for each in found.controls]
    assert names == ["mask", "zero row", "difference of means", "random latent", "random direction"]
    for name in names[2:]:
        assert found.control(name).norm == pytest.approx(norm)
    others = salve.assess(resnet, edit, acts, target=3, dictionary=atoms, seed=8)
    assert others.control("mask") == found.control("mask")
    assert others.control("random latent") != found.control("random latent")
    assert found == salve.assess(resnet, edit, acts, target="3", dictionary=atoms, seed=7)
    with pytest.raises(InputError, match="no control 'prayer'"):
        found.control("prayer")


def test_the_mask_hides_a_class_where_logits_are_close_too() -> None:
    draw = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(3, 4, generator=draw))
        layer.bias.zero_()
    x = torch.randn(12, 4, generator=draw)
    hooked = salve.attach(torch.nn.Sequential(torch.nn.Identity(), layer), head="1", probe=x)
    loader = [(x, torch.arange(12) % 3)]
    found = salve.assess(hooked, salve.zero_row(hooked, 1), loader, target=1)
    ideal = found.control("mask").effect.ideal
    assert ideal is not None
    assert ideal.kl_target < 1e-9
    assert ideal.kl_others is not None
    assert ideal.kl_others < 1e-9


def test_the_ideal_is_reached_by_the_mask_and_not_by_a_zeroed_row(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    found = salve.assess(resnet, two_rows(resnet, atoms), acts, target=3)
    mask, zero = (found.control(name).effect.ideal for name in ("mask", "zero row"))
    assert mask is not None
    assert zero is not None
    assert (mask.runner_up, mask.others_agree) == (1.0, 1.0)
    assert mask.kl_target < 1e-6 < 1e-3 < zero.kl_target


@pytest.mark.parametrize("size", [64, 7])
def test_a_loader_gives_what_a_recording_gives(
    resnet: HookedModel,
    acts: Activations,
    atoms: Dictionary,
    digits_test: digits.Split,
    size: int,
) -> None:
    edit = two_rows(resnet, atoms)
    recorded = salve.assess(resnet, edit, acts, target=3, dictionary=atoms)
    loader = digits_test.batches(size)
    run = salve.assess(
        resnet, edit, loader, target=3, dictionary=atoms, classes=digits.CLASSES
    )  # fmt: skip
    assert salve.deviations(recorded, run, 2e-5) == []
    assert (run.evidence.images, run.evidence.labels) == (acts.images_sha256, acts.labels_sha256)
    assert run.evidence.recording is None is not recorded.evidence.recording
    assert run.evidence.model == edit.base.state == salve.state_digest(resnet.model)


def test_an_edit_of_a_hidden_site_is_run_and_leaves_the_classifier(
    vit: HookedModel, digits_test: digits.Split
) -> None:
    site = vit.sites["blocks.1.mlp.hook_post"]
    direction = torch.zeros(site.width, dtype=torch.float64)
    direction[:4] = 0.5
    edit = salve.edit_at(vit, site, Gate(direction[None], 5.0))
    labels = digits_test.labels.numpy()
    with torch.no_grad():
        before = vit.model(digits_test.images).double().numpy()
        after = edit.edited(vit.model)(digits_test.images).double().numpy()
    found = salve.assess(vit, edit, digits_test.batches(), target=2)
    expected = recounted.effect(labels, before, after, 2)
    for name in ("accuracy", "target", "others", "worst", "worst_label"):
        compared(getattr(found.effect, name), expected[name])
    assert found.effect.kl_others == pytest.approx(expected["kl_others"], rel=1e-4)
    assert found.reach == "hidden"
    assert all(each.weights_changed == 0 for each in found.classes)
    assert [each.name for each in found.controls] == ["mask", "zero row", "difference of means"]
    assert "which does not say that it is removed" in found.verdict or "not supp" in found.verdict
    acts = salve.record(vit, digits_test.batches(), progress=False)
    with pytest.raises(InputError, match="pass a loader"):
        salve.assess(vit, edit, acts)


class Counting(nn.Module):
    """A classifier that counts its passes in a buffer, in eval mode too."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        logits: Tensor = self.head(self.drop(x))
        return logits


def counting(atoms: Any) -> tuple[HookedModel, Edit]:
    from salve_plugin.site import Site

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Counting().train()
    site = Site("unembed.hook_in", "head", "in", "pooled", 6, readers=("head",))
    hooked = HookedModel(model, [site], attribution_site=None, description={"input_size": [6]})
    return hooked, salve.suppress(hooked, atoms(site), latent=0, strength=9.0)


def faulty(images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield images, torch.zeros(len(images), dtype=torch.int64)
    raise OSError("the disk is gone")


def test_nothing_of_the_model_is_different_afterwards_on_error_too(make_dictionary: Any) -> None:
    hooked, edit = counting(make_dictionary)
    images = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    state = {name: value.clone() for name, value in hooked.model.state_dict().items()}

    def unchanged() -> bool:
        same = all(torch.equal(state[n], v) for n, v in hooked.model.state_dict().items())
        return same and hooked.model.training and not salve.status(hooked).applied

    first = salve.assess(hooked, edit, [(images, labels)], target=0)
    assert unchanged()
    assert first == salve.assess(hooked, edit, iter([(images, labels)]), target=0)
    with pytest.raises(salve.SalveError):
        salve.assess(hooked, edit, faulty(images), target=0)
    assert unchanged()
    with pytest.raises(InputError, match="labels run from"):
        salve.assess(hooked, edit, [(images, labels + 1)])
    assert unchanged()


def test_classes_that_the_images_lack_are_listed_where_their_rows_were_touched(
    make_dictionary: Any,
) -> None:
    hooked, edit = counting(make_dictionary)
    images = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = salve.assess(hooked, edit, [(images, torch.tensor([0, 0, 1, 1]))], target=0)
    assert [(each.label, each.count) for each in found.classes] == [(0, 2), (1, 2), (2, 0), (3, 0)]
    assert found.outcome(3).accuracy is found.outcome(3).probability is None
    rows = replace(edit, rows=(0, 3))
    found = salve.assess(hooked, rows, [(images, torch.zeros(4, dtype=torch.int64))], target=0)
    assert [each.label for each in found.classes] == [0, 3]
    assert found.effect.others is found.effect.worst is found.effect.kl_others is None
    with pytest.raises(InputError, match="class 2 is not among"):
        found.outcome(2)
    assert "no images" not in found.verdict


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_assessed_is_refused(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = two_rows(resnet, atoms)
    wrong: Any = resnet.model
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target": 10}, "no images of the target, class 10"),
        ({"target": "cat"}, "'cat' is no class name"),
        ({"target": 3, "has": [True] * 360}, "two aims"),
        ({"has": [True] * 359}, "one truth value for each of 360"),
        ({"has": [1] * 360}, "one truth value"),
        ({"has": [True] * 360}, "alike in the concept"),
        ({"command": "rm"}, "is none of"),
    ]
    for options, message in refused:
        with pytest.raises(InputError, match=message):
            salve.assess(resnet, edit, acts, **options)
    with pytest.raises(InputError, match="attached model"):
        salve.assess(wrong, edit, acts)
    with pytest.raises(InputError, match="empty"):
        salve.assess(resnet, edit, [])
    with pytest.raises(InputError, match="no images of the target"):
        salve.assess(resnet, edit, [(digits_test.images[:1], digits_test.labels[:1])],
                     target=int(digits_test.labels[0]) ^ 1)  # fmt: skip
    with edit.applied(resnet), pytest.raises(EditStateError, match="already applied"):
        salve.assess(resnet, edit, acts)
    with pytest.raises(BaseMismatchError):
        salve.assess(resnet, replace(edit, base=replace(edit.base, tensors={
            path: replace(own, sha256="0" * 64) for path, own in edit.base.tensors.items()
        })), acts)  # fmt: skip


def test_an_assessment_goes_to_json_and_back_and_says_itself_in_a_line(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    found = salve.assess(resnet, two_rows(resnet, atoms), acts, target=3)
    assert Assessment.from_json(found.to_json()) == found
    assert "\n" not in repr(found)
    assert found.verdict in repr(found)
    text = found.table(most=4)
    assert "and 6 classes more" in text
    assert all(name in text for name in ("'3' (3)", "mask", "Budget: fc.weight rank 2"))


def test_the_norm_beside_the_controls_is_of_the_weights_as_theirs_is(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    found = salve.assess(resnet, map_with_offset(resnet, atoms), acts, target=3)
    # The offset moves the bias, too, and the controls have the weights' norm alone.
    assert found.budget.norm > found.budget.weight_norm
    assert found.control("random direction").norm == pytest.approx(found.budget.weight_norm)
    rows = {row[0]: row[-1] for row in control_rows(found)}
    assert rows["the edit"] == rows["random direction"]


def test_where_the_means_are_equal_their_difference_is_no_control(
    resnet: HookedModel, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = all_rows(resnet, atoms)
    # The same picture for every class: what is left of the difference is rounding.
    same = [(digits_test.images[:1].expand(40, -1, -1, -1), torch.arange(40) % 10)]
    names = [each.name for each in salve.assess(resnet, edit, same, target=1).controls]
    assert names == ["mask", "zero row", "random direction"]
    has = torch.arange(40) < 20
    names = [each.name for each in salve.assess(resnet, edit, same, has=has).controls]
    assert names == ["random direction"]


@pytest.mark.parametrize("classes", [["one"], "abcdefghij", ["more"] * 11])
def test_names_that_are_not_one_for_each_class_are_refused(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, classes: Any
) -> None:
    with pytest.raises(InputError, match="a list of 10 names"):
        salve.assess(resnet, all_rows(resnet, atoms), acts, classes=classes)


@pytest.mark.parametrize("seed", [-1, 2**60])
def test_a_seed_that_no_generator_takes_is_refused(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, seed: int
) -> None:
    edit = all_rows(resnet, atoms)
    with pytest.raises(InputError, match="seed"):
        salve.assess(resnet, edit, acts, target=3, dictionary=atoms, seed=seed)
    with pytest.raises(InputError, match="seed"):
        salve.forgetting(resnet, edit, [], target=3, seed=seed)


def test_a_class_without_images_that_images_go_to_is_named_where_its_name_is_given(
    resnet: HookedModel, acts: Activations, atoms: Dictionary, digits_test: digits.Split
) -> None:
    edit = salve.mask(resnet, 3, acts)
    weight, bias = resnet.unembed()
    logits = (acts.tensor() @ weight.T + bias)[acts.labels() == 3]
    logits[:, 3] = -torch.inf
    goes = int(logits.argmax(1).mode().values)
    kept = digits_test.labels != goes
    loader = [(digits_test.images[kept], digits_test.labels[kept])]
    found = salve.assess(resnet, edit, loader, target=3, classes=digits.CLASSES)
    assert goes not in [each.label for each in found.classes]
    assert f"'{digits.CLASSES[goes]}' ({goes})" in found.table(names=digits.CLASSES)
    assert f"'{digits.CLASSES[goes]}' ({goes})" not in found.table()


def test_no_terminal_obeys_the_name_of_a_class(
    resnet: HookedModel, acts: Activations, atoms: Dictionary
) -> None:
    names = ["\x1b[31mzero", *digits.CLASSES[1:]]
    found = salve.assess(resnet, all_rows(resnet, atoms), acts, target=0, classes=names)
    assert found.classes[0].name == names[0]
    assert "\x1b" not in found.table() + found.verdict
    assert "\\x1b[31mzero" in found.verdict
