"""Which group of classes each latent tells best, and whether any single class does better."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import listed
from salve_plugin.kinds import of_kind


def with_single_classes(
    groups: Mapping[str, Sequence[int]], acts: Activations
) -> tuple[tuple[str, ...], Bool[Tensor, "groups classes"]]:
    """Return the names of groups and of all single classes, and which classes each has.

    A group is worth naming only where it is told better than each of its classes.

    Args:
        groups: class indices by name; they may overlap.
        acts: a recording with these classes.

    Raises:
        InputError: if there is no group, or one is empty or has another class.
    """
    of_kind(groups, Mapping, "groups", "class indices by the name of a group")
    names = acts.classes or tuple(map(str, range(acts.n_classes)))
    count = len(names)
    wrong = [name for name, own in groups.items() if not own or not set(own) <= set(range(count))]
    if wrong or not groups:
        raise InputError(
            f"groups {listed(wrong or list(groups))}: expected at least one, each of some of the "
            f"classes 0 to {count - 1}, such as salve.class_tree(hooked).groups"
        )
    members = torch.zeros(len(groups), count, dtype=torch.bool)
    for row, own in zip(members, groups.values(), strict=True):
        row[list(own)] = True
    return (*groups, *names), torch.cat([members, torch.eye(count, dtype=torch.bool)])
