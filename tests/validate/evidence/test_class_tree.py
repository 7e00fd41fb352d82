"""The classifier's tree of classes against a plain join, and latents that tell a group of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import salve_plugin as salve
from salve_plugin.control.concepts.evidence import auc
from salve_plugin.errors import InputError
from salve_plugin.validate.evidence.class_profile import class_profile
from salve_plugin.validate.evidence.permuting import permuted_labels


def head(weight: torch.Tensor) -> salve.HookedModel:
    """Return a model that is a classifier with the given rows."""
    model = nn.Sequential()
    linear = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        linear.weight.copy_(weight)
    model.add_module("fc", linear)
    site = salve.Site("unembed.hook_in", "fc", "in", "pooled", weight.shape[1], readers=("fc",))
    return salve.HookedModel(
        model, [site], attribution_site=None, description={"input_size": [weight.shape[1]]}
    )


@settings(deadline=None, max_examples=10, derandomize=True)
@given(seed=st.integers(0, 1000), classes=st.integers(3, 9))
def test_the_two_most_alike_on_average_are_joined_next(seed: int, classes: int) -> None:
    weight = torch.randn(classes, 5, generator=torch.Generator().manual_seed(seed))
    tree = salve.class_tree(head(weight))
    rows = (weight.double() - weight.double().mean(0)).numpy()
    rows = rows / (rows**2).sum(1, keepdims=True) ** 0.5
    nodes: dict[int, tuple[int, ...]] = {label: (label,) for label in range(classes)}
    for at, (joined, cosine) in enumerate(zip(tree.joined, tree.cosines, strict=True)):
        means = {
            (a, b): float((rows[list(nodes[a])] @ rows[list(nodes[b])].T).mean())
            for a in nodes for b in nodes if a < b
        }  # fmt: skip
        assert cosine == pytest.approx(max(means.values()), abs=1e-6)
        assert means[min(joined), max(joined)] == pytest.approx(cosine, abs=1e-6)
        nodes[classes + at] = nodes.pop(joined[0]) + nodes.pop(joined[1])
        assert nodes[classes + at] == tree.members[at]
    assert sorted(tree.members[-1]) == list(range(classes))
    assert list(tree.cosines) == sorted(tree.cosines, reverse=True)
    # What is added to all rows adds the same to all logits.
    moved = salve.class_tree(head(weight + 3))
    assert moved.members == tree.members


def test_it_is_drawn_and_its_groups_have_names_of_their_own() -> None:
    weight = torch.tensor([[1.0, 0], [0.9, 0.1], [-1, 0], [-0.9, -0.2]])
    tree = salve.class_tree(head(weight), ("cat", "dog", "car", "bus"))
    assert tree.groups == {"cat … dog (2)": (0, 1), "car … bus (2)": (2, 3)}
    assert "4 classes" in repr(tree)
    drawn = [line.split("  ")[0].rstrip() for line in str(tree).splitlines()]
    assert "4 classes" in drawn
    assert [line for line in drawn if line in ("· · cat", "· · dog", "· · car", "· · bus")] == (
        ["· · cat", "· · dog", "· · car", "· · bus"]
    )
    for rows, names in ((weight[:2], None), (weight, ("a", "b"))):
        with pytest.raises(InputError, match="at least three classes"):
            salve.class_tree(head(rows), names)


def test_of_groups_the_rank_sums_are_those_of_their_images() -> None:
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 5, (40, 6), generator=random).float()
    labels = torch.arange(40) % 4
    groups = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]]).bool()
    permuted = permuted_labels(labels, 30, 0)
    profile = class_profile(codes, labels, permuted, groups)
    for latent in range(6):
        areas, z = [], []
        for group in groups:
            inside = group[labels]
            n = int(inside.sum())
            ranks = (codes[:, latent, None] > codes[:, latent]).double().sum(1) + 0.5 * (
                codes[:, latent, None] == codes[:, latent]
            ).double().sum(1)
            spread = (n * (40 - n) / 39 * ranks.var(correction=0)).sqrt()
            z.append(float((ranks[inside] - ranks.mean()).sum() / spread))
            areas.append(auc(codes[:, latent].double(), inside))
        best = max(range(3), key=z.__getitem__)
        assert int(profile.label[latent]) == best
        assert float(profile.z[latent]) == pytest.approx(z[best])
        assert float(profile.auc[latent]) == pytest.approx(areas[best])
    # Each class a group of its own: the class profile.
    alone = class_profile(codes, labels, permuted, torch.eye(4).bool())
    plain = class_profile(codes, labels, permuted)
    for name, value in vars(plain).items():
        torch.testing.assert_close(getattr(alone, name), value)


def test_a_latent_of_two_classes_is_named_by_their_group(known: Any, tmp_path: Path) -> None:
    hooked, dictionary, acts = known
    groups = {"first two": (0, 1), "last two": (1, 2)}
    result = salve.evidence(*known, permutations=19, groups=groups, folder=tmp_path)
    assert result.groups is not None
    assert result.groups.names == ("first two", "last two", *(acts.classes or "012"))
    assert result.groups.best[:3].tolist() == [2, 3, 4]  # planted: each of a class alone
    torch.testing.assert_close(result.groups.auc[:3], result.auc[:3])
    assert "group" in result.table([0]).splitlines()[1]
    again = salve.evidence(*known, permutations=19, groups=groups, folder=tmp_path)
    assert again.groups is not None
    assert torch.equal(again.groups.auc_p_all, result.groups.auc_p_all)
    for wrong in ({}, {"none": ()}, {"other": (0, 7)}):
        with pytest.raises(InputError, match="classes 0 to 2"):
            salve.evidence(hooked, dictionary, acts, permutations=2, groups=wrong)
