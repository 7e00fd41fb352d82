"""Control vectors and probe directions on shifts that the test planted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from salve_plugin import (
    Activations,
    HookedModel,
    SalveError,
    control_vector,
    erase,
    find_concept,
    raptor_direction,
    record,
)
from salve_plugin.control.concepts.evidence import auc
from salve_plugin.control.concepts.split import group_indices

SHIFT = torch.tensor([0.6, -0.8, 0.0])
SPREAD = torch.tensor([1.0, 1.0, 30.0])  # a feature in another unit, which says nothing

Recorder = Callable[[Tensor, str], Activations]


@pytest.fixture
def recorder(tiny: HookedModel, tmp_path: Path) -> Recorder:
    """Records vectors as they are: the site is the model's own input."""

    def recorded(x: Tensor, name: str) -> Activations:
        loader = [(x, torch.arange(len(x)) % 4)]
        return record(tiny, loader, "blind", folder=tmp_path / name, progress=False)

    return recorded


def pairs(n: int = 60, seed: int = 0, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    plain = torch.randn(n, 3, generator=draw)
    return plain + SHIFT + noise * torch.randn(n, 3, generator=draw), plain


def test_the_control_vector_is_the_planted_shift(recorder: Recorder) -> None:
    with_, plain = pairs()
    concept = control_vector(recorder(with_, "with"), recorder(plain, "plain"))
    assert float(concept.read @ SHIFT.double()) > 0.95
    assert float(concept.read.norm()) == pytest.approx(1)
    # The first right singular vector of the raw differences, by another way.
    axis = torch.linalg.svd((with_ - plain).double())[2][0]
    assert float((axis @ concept.read).abs()) == pytest.approx(1, abs=1e-9)
    assert concept.evidence is not None
    assert concept.source == "direction"
    assert concept.values.tolist() == pytest.approx(
        (torch.cat([with_, plain]).double() @ concept.read).tolist()
    )


def test_swapping_the_roles_turns_it_round(recorder: Recorder) -> None:
    with_, plain = (recorder(x, str(i)) for i, x in enumerate(pairs()))
    there, back = control_vector(with_, plain), control_vector(plain, with_)
    torch.testing.assert_close(there.read, -back.read)


def test_pairs_without_a_common_shift_are_no_concept(recorder: Recorder) -> None:
    draw = torch.Generator().manual_seed(5)
    first, second = torch.randn(60, 3, generator=draw), torch.randn(60, 3, generator=draw)
    concept = control_vector(recorder(first, "a"), recorder(second, "b"))
    assert concept.evidence is not None
    assert not concept.evidence.is_real


def test_the_probe_holds_on_images_that_nobody_has_seen(recorder: Recorder) -> None:
    draw = torch.Generator().manual_seed(2)
    has = torch.rand(240, generator=draw) < 0.5
    x = torch.randn(240, 3, generator=draw) * SPREAD + 2.5 * has[:, None] * SHIFT
    concept = raptor_direction(recorder(x[:120], "known"), has[:120])
    assert concept.evidence is not None
    assert concept.evidence.is_real
    unseen = auc(x[120:].double() @ concept.read, has[120:])
    assert unseen > 0.9
    # It judges on the quarter that neither fitted it nor chose its regularization.
    assert 20 <= concept.evidence.n_with + concept.evidence.n_without <= 40
    again = raptor_direction(recorder(x[:120], "again"), has[:120])
    assert again.read.equal(concept.read)
    assert again.evidence == concept.evidence


def test_the_probe_does_not_depend_on_the_features_units(recorder: Recorder) -> None:
    draw = torch.Generator().manual_seed(3)
    has = torch.rand(120, generator=draw) < 0.5
    x = torch.randn(120, 3, generator=draw) + has[:, None] * SHIFT
    plain = raptor_direction(recorder(x, "plain"), has).read
    other = raptor_direction(recorder(x * SPREAD, "other"), has).read * SPREAD
    torch.testing.assert_close(other / other.norm(), plain, rtol=1e-3, atol=1e-4)


def test_both_can_be_erased(tiny: HookedModel, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(4)
    plain = torch.randn(40, 3, generator=draw)
    labels = torch.arange(40) % 4
    recordings = [
        record(tiny, [(x, labels)], folder=tmp_path / name, progress=False)
        for name, x in (("with", plain + 2 * SHIFT), ("plain", plain))
    ]
    for concept in (
        control_vector(*recordings),
        raptor_direction(recordings[0], without=recordings[1]),
    ):
        edit = erase(tiny, concept, "leace", shrinkage=0.0, balanced=False)
        x = torch.cat([acts.tensor() for acts in recordings]).double()
        after = edit.operator.activation(x, 1)
        values = concept.values - concept.values.mean()
        assert float(((after - after.mean(0)).T @ values).abs().max()) < 1e-6 * len(x)


def test_what_cannot_be_is_named(recorder: Recorder) -> None:
    with_, plain = pairs(20)
    acts = recorder(with_, "with")
    with pytest.raises(SalveError, match="are no pairs"):
        control_vector(acts, recorder(plain[:16], "fewer"))
    with pytest.raises(SalveError, match="do not differ"):
        control_vector(acts, recorder(with_, "same"))
    same = recorder(plain, "plain")
    with pytest.raises(SalveError, match="tear pairs apart"):
        control_vector(acts, same, groups=[*range(20), *range(39, 19, -1)])
    with pytest.raises(SalveError, match="either `has`"):
        raptor_direction(acts)
    with pytest.raises(SalveError, match="four groups"):
        raptor_direction(acts, without=same, groups=[0, 1] * 20)
    constant = recorder(torch.ones(20, 3), "constant")
    with pytest.raises(SalveError, match="do not vary"):
        raptor_direction(constant, torch.arange(20) % 2 == 0)
    assert find_concept(acts, without=same).is_paired


def test_groups_that_are_given_are_those_of_the_concept(recorder: Recorder) -> None:
    with_, plain = pairs()
    acts, without = recorder(with_, "with"), recorder(plain, "plain")
    shots = torch.arange(60) // 3  # three crops of each photograph
    paired = control_vector(acts, without, groups=shots.repeat(2))
    assert paired.groups.tolist() == shots.repeat(2).tolist()
    assert paired.is_paired
    probed = raptor_direction(acts, without=without, groups=torch.arange(120) // 3)
    assert probed.groups.tolist() == (torch.arange(120) // 3).tolist()
    assert not probed.is_paired  # nobody said that image i of both belong together
    assert control_vector(acts, without).groups.tolist() == [*range(60), *range(60)]


def test_groups_that_hold_nothing_out_are_refused(recorder: Recorder) -> None:
    with_, plain = pairs()
    acts, without = recorder(with_, "with"), recorder(plain, "plain")
    for find in (control_vector, find_concept):
        with pytest.raises(SalveError, match="at least two groups"):
            find(acts, without=without, groups=[0] * 120)
    names = [f"photo{i // 3}" for i in range(120)]
    with pytest.raises(SalveError, match="one integer for each of 120 images"):
        group_indices(names, 120, paired=False)
