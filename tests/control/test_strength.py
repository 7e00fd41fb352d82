"""The exact critical strength against brute force, and against what an edited head computes."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from salve_plugin.control import flips
from salve_plugin.control.knots import BLOCK, LIMIT
from salve_plugin.control.operators import Mode
from salve_plugin.control.solving import solve
from salve_plugin.control.strength import (
    critical_flip_strength,
    critical_strength,
    critical_strength_linear,
)
from salve_plugin.errors import InputError


def logit(strength: Tensor, weight: Tensor, bias: Tensor, c: Tensor, a: Tensor) -> Tensor:
    """Return z(α) by its definition, in float64; all arguments broadcast over heads."""
    gate = (1 - strength[..., None] * c.double().abs()).clamp(min=0)
    return bias + (weight.double() * a.double() * gate).sum(-1)


def brute_force(weight: Tensor, bias: Tensor, c: Tensor, a: Tensor) -> Tensor:
    """Return the first root of each head (heads, width): every knot evaluated, then bisection."""
    reach = c.double().abs()
    limit = LIMIT / reach.amax(1, keepdim=True)
    knots = torch.minimum(1 / reach.clamp(min=1e-300), limit).sort(1).values
    knots = torch.cat([torch.zeros_like(limit), knots, limit], 1)
    values = torch.stack([logit(knot, weight, bias, c, a) for knot in knots.unbind(1)], dim=1)
    start = values[:, 0]
    reached = values <= 1e-12 * start[:, None]
    first = reached.int().argmax(1, keepdim=True).clamp(min=1)
    low, high = knots.gather(1, first - 1)[:, 0], knots.gather(1, first)[:, 0]
    for _ in range(100):
        middle = (low + high) / 2
        below = logit(middle, weight, bias, c, a) <= 0
        low, high = torch.where(below, low, middle), torch.where(below, middle, high)
    roots = torch.where(reached.any(1), high, torch.inf)
    return torch.where(start <= 0, 0.0, roots)


def random_heads(
    draw: torch.Generator, heads: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weights, biases, directions and activations, as different as heads may be."""
    weight, c, a = torch.randn(3, heads, width, generator=draw, dtype=torch.float64)
    kind = torch.arange(heads)
    c[kind % 3 == 1] = c[kind % 3 == 1] ** 5  # heavy tails: columns that never clamp
    c[kind % 5 == 2] = (c[kind % 5 == 2] * 2).round() / 2  # ties, and many zero columns
    c[:, 0] = torch.where((c == 0).all(1), 1.0, c[:, 0])
    a[kind % 2 == 0] = a[kind % 2 == 0].abs()  # after a ReLU
    weight[kind % 7 == 3] = weight[kind % 7 == 3].abs()
    bias = torch.randn(heads, generator=draw, dtype=torch.float64)
    bias[kind % 11 == 4] = 0.0
    c /= c.norm(dim=1, keepdim=True)
    return weight, bias, c, a


def check_against_brute_force(seed: int, heads: int, width: int) -> None:
    weight, bias, c, a = random_heads(torch.Generator().manual_seed(seed), heads, width)
    found = torch.cat(
        [critical_strength(weight[i], bias[i], c[i], a[i : i + 1]) for i in range(heads)]
    )
    expected = brute_force(weight, bias, c, a)
    assert torch.equal(found.isinf(), expected.isinf())
    assert torch.equal(found == 0, expected == 0)
    finite = found.isfinite() & (found > 0)
    torch.testing.assert_close(found[finite], expected[finite], rtol=1e-6, atol=0)
    start = logit(torch.zeros_like(found), weight, bias, c, a)
    left = logit(found.clamp(max=1e300), weight, bias, c, a)
    assert float((left / start)[finite].abs().max()) <= 1e-6


@pytest.mark.parametrize(("seed", "heads", "width"), [(0, 1000, 7), (1, 800, 30), (2, 200, 150)])
def test_it_agrees_with_brute_force(seed: int, heads: int, width: int) -> None:
    check_against_brute_force(seed, heads, width)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_it_agrees_with_brute_force_on_ten_thousand_heads(seed: int) -> None:
    check_against_brute_force(seed, 1000, [1, 2, 5, 20, 40, 63, 64, 65, 129, 300][seed])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_16_bits_are_the_numbers_that_they_are(dtype: torch.dtype) -> None:
    weight, bias, c, a = random_heads(torch.Generator().manual_seed(3), 300, 70)
    for i in range(len(a)):
        rounded = a[i : i + 1].to(dtype)
        own, double = (
            critical_strength(weight[i], bias[i], c[i], each)
            for each in (rounded, rounded.double())
        )
        torch.testing.assert_close(own, double, rtol=1e-6, atol=0)


def test_a_problem_that_a_person_can_solve() -> None:
    # z(α) = b + 4 max(0, 1 - α) + 2 max(0, 1 - α/2): knots at 1 and 2.
    weight, c = torch.tensor([4.0, 2.0]), torch.tensor([1.0, 0.5])
    a = torch.ones(1, 2)
    # 4(1-α) + 2(1-α/2) - 1.5 = 4.5 - 5α: zero at 0.9, before the first knot, at 1.
    assert critical_strength(weight, -1.5, c, a).item() == pytest.approx(0.9, abs=1e-15)
    # 2(1-α/2) - 0.5 = 1.5 - α on [1, 2]: zero at 1.5, where the first line has it at 1.1.
    assert critical_strength(weight, -0.5, c, a).item() == pytest.approx(1.5, abs=1e-15)
    assert critical_strength_linear(weight, -0.5, c, a).item() == pytest.approx(1.1, abs=1e-15)
    # Without a bias it reaches zero when the last column is used up, and not before.
    assert critical_strength(weight, 0.0, c, a).item() == pytest.approx(2.0, abs=1e-15)
    assert critical_strength(weight, 0.1, c, a).item() == math.inf
    assert critical_strength(weight, -6.0, c, a).item() == 0.0
    assert critical_strength(weight, 0.0, c, a, target=3.0).item() == pytest.approx(0.6, abs=1e-15)


def test_the_first_of_several_roots_is_found() -> None:
    # Columns are used up in this order; the logit falls below zero, rises, and falls again.
    c = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    weight = torch.tensor([3.0, -6.0, 4.0], dtype=torch.float64)
    a = torch.ones(1, 3, dtype=torch.float64)
    grid = torch.linspace(0, 5, 5001, dtype=torch.float64)
    z = logit(grid, weight, torch.tensor(-0.5), c, a[0])
    signs = (z <= 0).int()
    assert int((signs[1:] != signs[:-1]).sum()) == 3  # three roots
    root = critical_strength(weight, -0.5, c, a)
    assert float(root) == pytest.approx(float(grid[signs.argmax()]), abs=1e-3)


def test_a_logit_held_up_by_its_bias_has_no_root() -> None:
    """300 heads with bias and ReLU features: what is left when all is clamped decides, no residue.

    Solvers that subtract columns one by one find roots near 1e14 here.
    """
    draw = torch.Generator().manual_seed(4)
    weight, c, a = torch.randn(3, 300, 40, generator=draw, dtype=torch.float64)
    bias, a = torch.randn(300, generator=draw, dtype=torch.float64), a.relu()
    roots = torch.cat(
        [critical_strength(weight[i], bias[i], c[i], a[i : i + 1]) for i in range(300)]
    )
    assert torch.equal(roots.isinf(), brute_force(weight, bias, c, a).isinf())
    assert 50 < int(roots.isinf().sum()) < 250
    reached = roots[roots.isfinite()] * c[roots.isfinite()].abs().amax(1)
    assert float(reached.max()) <= LIMIT


def test_a_root_beyond_the_limit_is_none() -> None:
    c = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    a = torch.ones(1, 2, dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0], dtype=torch.float64)
    # Past the first knot 1 - 1e-4 α is left: 0.9 at the limit of 1000.
    assert critical_strength(weight, -0.95, c, a).item() == pytest.approx(500.0)
    assert critical_strength(weight, -0.9, c, a).item() == pytest.approx(1000.0)
    assert critical_strength(weight, -0.89, c, a).item() == math.inf


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 3 * BLOCK), st.integers(1, 40))
def test_chunks_change_no_bit(seed: int, width: int, chunk: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(97, width, generator=draw)
    weight, c = torch.randn(2, width, generator=draw)
    whole = critical_strength(weight, 0.1, c, a, chunk=1000)
    assert torch.equal(critical_strength(weight, 0.1, c, a, chunk=chunk), whole)
    assert torch.equal(critical_strength(weight, 0.1, c, a[13:14]), whole[13:14])


def test_scaling_the_direction_scales_the_strength() -> None:
    draw = torch.Generator().manual_seed(3)
    images = torch.randn(200, 50, generator=draw, dtype=torch.float64)
    weight, c = torch.randn(2, 50, generator=draw, dtype=torch.float64)
    once = critical_strength(weight, 0.1, c, images)
    assert torch.equal(critical_strength(weight, 0.1, c * 4, images), once / 4)


@pytest.mark.parametrize("mode", ["suppress", "enhance"])
def test_an_edit_that_touches_nothing_never_breaks_anything(mode: Mode) -> None:
    a = torch.ones(2, 3)
    never = critical_strength(
        torch.ones(3), torch.tensor([1.0, -4.0]), torch.zeros(3), a, mode=mode
    )
    assert never.tolist() == [math.inf, 0.0]


def test_enhancing_breaks_a_logit_only_through_negative_contributions() -> None:
    c = torch.tensor([0.6, 0.8])
    a = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    found = critical_strength(torch.tensor([3.0, -1.0]), 0.0, c, a, mode="enhance")
    assert found.tolist() == [math.inf, math.inf]
    # The second image: 3 - 2.8 + α (3 · 0.6 - 2.8 · 0.8) = 0.2 - 0.44 α.
    found = critical_strength(torch.tensor([3.0, -1.4]), 0.0, c, a, mode="enhance")
    assert found.tolist() == pytest.approx([math.inf, 0.2 / 0.44], rel=1e-6)


def test_the_closed_form_is_exact_only_up_to_the_first_knot() -> None:
    draw = torch.Generator().manual_seed(0)
    a = torch.rand(500, 64, generator=draw, dtype=torch.float64)
    weight, c = torch.randn(2, 64, generator=draw, dtype=torch.float64)
    exact = critical_strength(weight, 0.3, c, a)
    linear = critical_strength_linear(weight, 0.3, c, a)
    z = (a @ weight) + 0.3
    expected = torch.where(z <= 0, 0.0, z / (a @ (weight * c.abs())))
    expected = torch.where(expected < 0, torch.inf, expected)
    torch.testing.assert_close(linear, expected)
    first = 1 / float(c.abs().max())
    assert torch.equal(exact <= first, linear <= first)
    early = exact <= first
    torch.testing.assert_close(exact[early], linear[early])


@pytest.mark.parametrize("rows", [None, [1], [0], [0, 2, 3]])
def test_the_flip_is_where_another_class_overtakes(rows: list[int] | None) -> None:
    draw = torch.Generator().manual_seed(8)
    weight = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    bias = torch.tensor([0.5, -1.0, 0.0, 0.2], dtype=torch.float64)
    c = torch.nn.functional.normalize(torch.randn(9, generator=draw, dtype=torch.float64), dim=0)
    a = torch.rand(60, 9, generator=draw, dtype=torch.float64)
    labels = (a @ weight.T + bias).argmax(1)
    found = critical_flip_strength(weight, bias, c, a, labels, rows=rows)
    # Every edited head of a grid of strengths, and the first at which the label no longer wins.
    grid = torch.arange(0, 30, 0.01, dtype=torch.float64)
    heads = weight.repeat(len(grid), 1, 1)
    gates = (1 - grid[:, None, None] * c.abs()).clamp(min=0)
    index = slice(None) if rows is None else rows
    heads[:, index] *= gates
    logits = heads @ a.T + bias[:, None]
    own = logits.gather(1, labels.expand(len(grid), 1, -1))
    lost = (logits >= own).sum(1) > 1
    first = torch.where(lost.any(0), grid[lost.int().argmax(0)], torch.inf)
    assert torch.equal(first.isinf(), found > grid[-1])
    seen = first.isfinite()
    assert 0 < int(seen.sum()) < 60 or rows is None
    assert bool((found[seen] <= first[seen] + 1e-9).all())
    assert bool((found[seen] >= first[seen] - 0.01 - 1e-9).all())


def rival_by_rival(
    weight: Tensor, bias: Tensor, c: Tensor, a: Tensor, label: int, rows: list[int], mode: Mode
) -> Tensor:
    """Return one image's flip as the least of one problem for each competitor."""
    problems = [torch.tensor([math.inf], dtype=torch.float64)]
    weight, a = weight.double(), a.double()
    still = torch.tensor([row not in rows for row in range(len(weight))])
    scaled = weight * ~still[:, None]
    rest = bias.double() + (a * (weight - scaled)).sum(1)
    for other in range(len(weight)):
        if other != label:
            height = rest[label] - rest[other]
            problems.append(
                critical_strength(scaled[label] - scaled[other], height, c, a[None], mode=mode)
            )
    return torch.cat(problems).amin()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(0, 10**6), st.integers(2, 25), st.integers(1, 3 * BLOCK), st.booleans(),
    st.sampled_from(["suppress", "enhance"]), st.sampled_from(["plain", "ties", "copies", "none"]),
)  # fmt: skip
def test_bounds_rule_out_no_rival_that_comes_first(
    seed: int, classes: int, width: int, some: bool, mode: Mode, kind: str
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight, a = torch.randn(classes, width, generator=draw), torch.randn(3, width, generator=draw)
    c = torch.randn(width, generator=draw) ** (1 + 4 * (seed % 2))
    if kind == "ties":
        weight, c = (2 * weight).round(), (2 * c).round()
    elif kind == "copies":  # rivals that arrive together
        weight = weight[torch.randint(0, classes, (classes,), generator=draw)]
    elif kind == "none":
        c = torch.zeros(width)
    bias = torch.randn(classes, generator=draw)
    labels = torch.addmm(bias, a, weight.T).argmax(1)
    labels[0] = seed % classes
    rows = [seed % classes, (seed // 7) % classes] if some else [*range(classes)]
    roots = critical_flip_strength(weight, bias, c, a, labels, rows=rows, mode=mode)
    for image in range(3):
        least = rival_by_rival(weight, bias, c, a[image], int(labels[image]), rows, mode)
        torch.testing.assert_close(roots[image], least, rtol=1e-9, atol=0)


def test_most_rivals_of_a_large_head_are_ruled_out_and_the_rest_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = torch.Generator().manual_seed(5)
    weight, a = torch.randn(1000, 1024, generator=draw), torch.rand(4, 1024, generator=draw)
    bias, c = torch.zeros(1000), torch.randn(1024, generator=draw)
    labels = (a @ weight.T).argmax(1)
    solved: list[int] = []

    def counted(*arguments: Any) -> tuple[Tensor, Tensor]:
        solved.append(len(arguments[2]))
        return solve(*arguments)

    monkeypatch.setattr(flips, "solve", counted)
    found = critical_flip_strength(weight, bias, c, a, labels)
    assert sum(solved) < 0.2 * 4 * 1000
    monkeypatch.undo()
    for image in range(4):
        label = int(labels[image])
        rivals = torch.cat([weight[:label], weight[label + 1 :]]).double()
        terms = a[image].double() * (weight[label].double() - rivals)
        height, ones = torch.zeros(999).double(), torch.ones(1, 1024).double()
        assert torch.equal(found[image], solve(ones, c, terms, height, "suppress", None)[0].amin())


def test_an_image_that_is_wrong_already_needs_no_strength() -> None:
    weight, bias, c = torch.eye(2), torch.zeros(2), torch.tensor([0.6, 0.8])
    found = critical_flip_strength(weight, bias, c, torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert found.tolist() == [0.0]


def test_bad_input_is_named() -> None:
    one, a = torch.ones(3), torch.ones(2, 3)
    with pytest.raises(InputError, match="not finite"):
        critical_strength(one, 0.0, one, torch.tensor([[1.0, 2.0, math.nan]]))
    with pytest.raises(InputError, match="direction is not finite"):
        critical_strength(one, 0.0, one * math.inf, a)
    with pytest.raises(InputError, match="target of shape"):
        critical_strength(one, 0.0, one, a, target=torch.zeros(3))
    with pytest.raises(InputError, match="chunk"):
        critical_strength(one, 0.0, one, a, chunk=0)
    with pytest.raises(InputError, match="classes 0 to 1"):
        critical_flip_strength(torch.ones(2, 3), torch.zeros(2), one, a, torch.tensor([0, 2]))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "supress"),
        ("mode", None),
        ("weight", [1.0, 2.0]),
        ("weight", torch.ones(1, 2)),
        ("weight", torch.tensor(1.0)),
        ("bias", None),
        ("direction", None),
        ("direction", torch.eye(2)),
        ("activations", torch.ones(2)),
        ("activations", None),
        ("target", "zero"),
    ],
)
def test_what_is_no_argument_is_refused_by_name(name: str, value: object) -> None:
    good: dict[str, Any] = {
        "weight": torch.ones(2), "bias": 0.0, "direction": torch.tensor([0.0, 1.0]),
        "activations": torch.ones(3, 2),
    }  # fmt: skip
    with pytest.raises(InputError, match=name):
        critical_strength(**{**good, name: value})


def test_the_parameters_of_a_model_are_taken_as_they_are() -> None:
    draw = torch.Generator().manual_seed(5)
    head = torch.nn.Linear(6, 4)
    x, c = torch.randn(9, 6, generator=draw), torch.randn(6, generator=draw)
    wanted = x.clone().requires_grad_()
    weight, bias = head.weight.detach(), head.bias.detach()
    for solved in (critical_strength, critical_strength_linear):
        found = solved(head.weight[1], head.bias[1], c, wanted, target=head.bias[2] - 1)
        assert torch.equal(found, solved(weight[1], bias[1], c, x, target=bias[2] - 1))
        assert not found.requires_grad
    labels = head(x).argmax(1)
    found = critical_flip_strength(head.weight, head.bias, c, wanted, labels)
    assert torch.equal(found, critical_flip_strength(weight, bias, c, x, labels))
    assert not found.requires_grad
