"""Self-repair on networks whose answer is known, and on trained ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from salve_plugin import (
    Edit,
    Gate,
    HookedModel,
    LowRankMap,
    SalveError,
    Site,
    attach,
    edit_at,
    self_repair,
)
from salve_plugin.demo import digits

FIXTURES = Path(__file__).parents[2] / "fixtures"
HEAD = "unembed.hook_in"


class Repairing(nn.Module):
    """A residual stream in which the second block takes back a share of what the first wrote."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.first, self.join = nn.Linear(5, 5), nn.Identity()
        self.second, self.last = nn.Linear(5, 5), nn.Identity()
        self.head = nn.Linear(5, 3)
        with torch.no_grad():
            self.second.weight.copy_(-share * torch.eye(5))

    def forward(self, x: Tensor) -> Tensor:
        stream = x + self.join(self.first(x))
        stream = self.last(stream + self.second(stream))
        logits: Tensor = self.head(stream)
        return logits


def repairing(share: float) -> HookedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Repairing(share).eval()
    sites = [
        Site("blocks.0.hook_mlp_out", "join", "in", "pooled", 5, writers=("first",)),
        Site("blocks.1.hook_resid_post", "last", "out", "pooled", 5),
        Site(HEAD, "head", "in", "pooled", 5, readers=("head",)),
    ]
    return HookedModel(
        model, sites, attribution_site=None,
        description={"family": "test", "architecture": "Repairing", "input_size": [5]},
        probe=torch.randn(2, 5, generator=torch.Generator().manual_seed(1)),
    )  # fmt: skip


def ablation(hooked: HookedModel, site: str, seed: int = 0) -> Edit:
    width = hooked.site(site).width
    axis = torch.randn(width, 1, generator=torch.Generator().manual_seed(seed))
    axis = axis / axis.norm()
    return edit_at(hooked, site, LowRankMap(axis, axis, torch.zeros(1)))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0, -0.5])
def test_the_planted_share_is_made_good(share: float) -> None:
    hooked = repairing(share)
    images = torch.randn(16, 5, generator=torch.Generator().manual_seed(2))
    result = self_repair(hooked, ablation(hooked, "blocks.0.hook_mlp_out"), images, 1)
    assert result.recovery == pytest.approx(share, abs=1e-5)
    assert (result.departs, result.arrives) == ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_post")


def test_nothing_lies_behind_the_classifiers_input(digits_hooked: HookedModel) -> None:
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    width = digits_hooked.site(HEAD).width
    gate = edit_at(digits_hooked, HEAD, Gate(torch.ones(1, width) / width**0.5, 2.0), rows=[3])
    for edit in (ablation(digits_hooked, HEAD), gate):
        result = self_repair(digits_hooked, edit, images, 3)
        assert result.full != 0
        assert result.recovery == pytest.approx(0, abs=1e-4)


def test_the_last_block_has_nothing_left_to_answer() -> None:
    hooked = attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    result = self_repair(hooked, ablation(hooked, "blocks.3.hook_mlp_out"), images, 3)
    assert result.full != 0
    assert result.recovery == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("site", ["blocks.0.hook_attn_out", "blocks.1.ln2.hook_normalized"])
def test_on_the_direct_path_later_blocks_answer_as_before(site: str) -> None:
    hooked = attach(digits.load("vit", FIXTURES / "digits_vit.safetensors"))
    model: nn.Module = hooked.model
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    edit = ablation(hooked, site)
    result = self_repair(hooked, edit, images, 4)
    # By other means: every later branch is frozen at what it put out before the edit.
    depart = result.departs
    later = [
        name for name in list(hooked.sites)[list(hooked.sites).index(depart) + 1 :]
        if name.endswith(("hook_attn_out", "hook_mlp_out"))
    ]  # fmt: skip
    with torch.no_grad():
        before, clean = hooked.run_with_cache(images)
        hooks = [(name, lambda _, hook: clean[hook.name]) for name in later]
        with edit.applied(model):
            full = model(images)
            frozen = hooked.run_with_hooks(images, fwd_hooks=hooks)
    assert result.full == pytest.approx(float((full - before)[:, 4].mean()), abs=1e-5)
    assert result.direct == pytest.approx(float((frozen - before)[:, 4].mean()), abs=1e-4)
    assert abs(result.direct) > 1e-3


def test_where_no_path_is_known_it_says_so() -> None:
    hooked = attach(digits.load("resnet", FIXTURES / "digits_resnet.safetensors"))
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    edit = ablation(hooked, "blocks.1.hook_resid_post")
    with pytest.raises(SalveError, match="no path by addition"):
        self_repair(hooked, edit, images, 3)
    earlier = "blocks.0.hook_resid_post"
    for departs in (earlier, hooked.sites[earlier].module):  # a layer is another name for its site
        with pytest.raises(SalveError, match="cannot go from"):
            self_repair(hooked, edit, images, 3, departs=departs)
    with pytest.raises(SalveError, match="cannot be added"):
        self_repair(
            hooked, edit, images, 3,
            departs="blocks.2.hook_resid_post", arrives="blocks.3.hook_resid_post",
        )  # fmt: skip
    with pytest.raises(SalveError, match="label 10"):
        self_repair(hooked, ablation(hooked, HEAD), images, 10)
