"""Sites: rows of features and the way to JSON and back."""

import json
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salve_plugin.errors import InputError, SalveError
from salve_plugin.site import Layout, Site

TOKENS = Site("blocks.0.hook_resid_post", "blocks.0", "out", "tokens", 3, 1, (2, 2), ("a",), ("b",))


@pytest.mark.parametrize(
    ("layout", "shape", "rows"),
    [
        ("pooled", (2, 3), 2),
        ("pooled", (2, 3, 1, 1), 2),
        ("tokens", (2, 5, 3), 10),
        ("nchw", (2, 3, 4, 5), 40),
        ("nhwc", (2, 4, 5, 3), 40),
    ],
)
def test_rows_are_the_features_at_every_position(
    layout: Layout, shape: tuple[int, ...], rows: int
) -> None:
    site = Site("s", "m", "out", layout, 3)
    activation = torch.zeros(shape)
    activation.select(site.channel_axis, 2).fill_(1)
    got = site.rows(activation)
    assert got.shape == (rows, 3)
    assert torch.equal(got, torch.tensor([0.0, 0.0, 1.0]).expand(rows, 3))


def test_recordings_hold_the_rows_of_all_but_the_prefix_tokens() -> None:
    activation = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(TOKENS.recorded_rows(activation), TOKENS.rows(activation[:, 1:]))
    pooled = Site("head", "head", "in", "pooled", 3)
    assert torch.equal(pooled.recorded_rows(activation[0]), pooled.rows(activation[0]))


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected layout 'tokens' with 3 features on axis 2"):
        TOKENS.rows(torch.zeros(2, 5, 4))
    with pytest.raises(InputError):
        TOKENS.rows(torch.zeros(2, 3))


names = st.text("abc.0", min_size=1, max_size=8)
fields = st.fixed_dictionaries(
    {
        "name": names,
        "module": names,
        "side": st.sampled_from(["in", "out"]),
        "layout": st.sampled_from(get_args(Layout)),
        "width": st.integers(1, 9),
        "prefix_tokens": st.integers(0, 3),
        "grid": st.none() | st.tuples(st.integers(1, 5), st.integers(1, 5)),
        "readers": st.lists(names, max_size=2).map(tuple),
        "writers": st.lists(names, max_size=2).map(tuple),
        "affine": st.lists(names, max_size=2).map(tuple),
    }
)


@given(fields)
@settings(deadline=None, max_examples=40, derandomize=True)
def test_a_site_survives_json(drawn: dict[str, Any]) -> None:
    if drawn["layout"] != "tokens":
        drawn = drawn | {"prefix_tokens": 0, "grid": None}
    site = Site(**drawn)
    assert Site.from_json(json.loads(json.dumps(site.to_json()))) == site


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "nope"},
        {"side": "both"},
        {"grid": [1]},
        {"grid": [0, 2]},
        {"readers": [1]},
        {"width": "3"},
        {"width": True},
        {"extra": 1},
    ],
)
def test_wrong_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SalveError):
        Site.from_json(TOKENS.to_json() | change)


@pytest.mark.parametrize("change", [{"prefix_tokens": 10**9}, {"grid": [2, 2]}])
def test_only_tokens_have_a_prefix_and_a_grid(change: dict[str, Any]) -> None:
    plain = Site("s", "m", "in", "pooled", 3).to_json()
    with pytest.raises(InputError, match="only tokens have those"):
        Site.from_json(plain | change)


def test_a_missing_field_is_refused() -> None:
    fields = TOKENS.to_json()
    del fields["module"]
    with pytest.raises(InputError, match="module"):
        Site.from_json(fields)
