"""The registry of learners, and the linear l1 learner's loss."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from salve_plugin.discover import learners as package
from salve_plugin.discover.learners import LEARNERS, create, learners, register
from salve_plugin.discover.learners.base import Step, Tensors
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.saelens_layout import written_as
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError


@pytest.fixture
def _registry() -> Iterator[None]:
    before = dict(LEARNERS)
    yield
    LEARNERS.clear()
    LEARNERS.update(before)


@dataclass(frozen=True)
class Rectified(L1):
    """A learner from elsewhere: l1 behind a ReLU."""

    name: ClassVar[str] = "rectified"

    def activate(self, t: Tensors, pre: Tensor) -> Tensor:
        return pre.relu()


@pytest.mark.usefixtures("_registry")
def test_a_learner_can_be_added_once_under_a_free_name() -> None:
    assert register(Rectified) is Rectified
    register(Rectified)  # the same class again: nothing is lost
    assert create("rectified", {"l1": 0.5}) == Rectified(l1=0.5)

    class Impostor(Rectified):
        """Wants the same name."""

    with pytest.raises(InputError, match="there is a learner 'rectified' already"):
        register(Impostor)

    def cell() -> type[L1]:
        """Stand for the cell of a notebook, which is run again."""

        @register
        @dataclass(frozen=True)
        class Own(L1):
            name: ClassVar[str] = "own"

        return Own

    first, second = cell(), cell()
    assert first is not second
    assert LEARNERS["own"] is second


NEW = """
from dataclasses import dataclass
from typing import ClassVar

from salve_plugin.discover.learners.registry import register
from salve_plugin.discover.learners.topk import TopK


@register
@dataclass(frozen=True)
class Halved(TopK):
    \"\"\"TopK with half of each value.\"\"\"

    name: ClassVar[str] = "halved"
    summary: ClassVar[str] = "keeps half of the k largest"
    share: float = 0.5

    def activate(self, t, pre):
        return self.share * super().activate(t, pre)
"""


@pytest.mark.usefixtures("_registry")
def test_a_new_learner_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "halved.py").write_text(NEW)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{package.__name__}.halved", raising=False)
    package._import_all()

    info = next(info for info in learners() if info.name == "halved")
    assert (info.summary, info.options["share"]) == ("keeps half of the k largest", 0.5)
    rows = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    dictionary = fit(rows, "halved", n_latents=8, k=2, share=0.25, steps=3, learning_rate=0.01)
    assert (dictionary.learner, dictionary.options["share"]) == ("halved", 0.25)
    topk = TopK(k=2).encode(dictionary.tensors, rows)
    torch.testing.assert_close(dictionary.encode(rows), topk / 4)
    # It codes in another way than TopK, whose form in SAELens it must not inherit.
    assert TopK.saelens == "topk"
    assert "halved" not in written_as()


def test_every_file_that_holds_a_learner_is_named_as_its_learner_is() -> None:
    own = [
        learner for learner in LEARNERS.values() if learner.__module__.startswith("salve_plugin")
    ]
    homes = {learner.name: learner.__module__.rpartition(".")[2] for learner in own}
    homes["matching_pursuit"] = homes.pop("mp")
    assert all(name == home for name, home in homes.items())


def test_an_unknown_learner_or_option_is_refused_with_those_that_exist() -> None:
    with pytest.raises(InputError, match=r"no learner 'top'; choose one of \[.*'topk'"):
        create("top", {})
    with pytest.raises(InputError, match=r"no options \['k'\]; it has \['l1'\]"):
        create("l1", {"k": 32})
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="finite number of at least 0"):
            create("l1", {"l1": bad})


JUNK = """
from dataclasses import fields
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.errors import InputError

junk = ("x", {}, [1, "a"], None, True, -1, 0, 2.5, 1e308, float("nan"), float("-inf"))
tried = 0
for name, learner in LEARNERS.items():
    for field in fields(learner):
        taken = []
        for value in junk:
            tried += 1
            try:
                create(name, {field.name: value})
            except InputError:
                continue
            taken.append(value)
        bad = [value for value in taken if isinstance(value, (str, dict, list))]
        if field.type in (int, int | None):
            bad += [value for value in taken if isinstance(value, float)]
        assert not bad and len(taken) < len(junk), (name, field.name, taken)
print(tried)
"""


def test_options_from_a_file_are_taken_or_refused_but_never_crash() -> None:
    """In a process of its own: here every call's types are checked before our checks run."""
    done = subprocess.run([sys.executable, "-c", JUNK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def test_every_learner_says_what_it_is_and_where_it_is_from() -> None:
    listed = {info.name: info for info in learners()}
    assert sorted(listed) == sorted(LEARNERS)
    for name, learner in LEARNERS.items():
        assert learner.name == name
        assert (listed[name].summary, listed[name].source) == (learner.summary, learner.source)
        assert learner.summary
        assert learner.source
        assert "\n" not in str(listed[name])


def test_the_documentation_lists_every_learner_as_it_describes_itself() -> None:
    text = (Path(__file__).parents[3] / "docs" / "dictionaries.md").read_text()
    table = text[text.index("| name | how it codes and learns |") :].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert rows == [[f"`{info.name}`", info.summary, info.source] for info in learners()]


def tensors_of_l1(random: torch.Generator, latents: int, width: int) -> Tensors:
    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64, requires_grad=True)

    return {
        "atoms": randn(latents, width), "encoder_weight": randn(latents, width),
        "encoder_bias": randn(latents), "decoder_bias": randn(width),
    }  # fmt: skip


def test_the_loss_is_the_mean_of_squared_error_and_weighted_codes_per_row() -> None:
    t = {
        "atoms": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "encoder_weight": torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
        "encoder_bias": torch.tensor([0.0, 1.0]),
        "decoder_bias": torch.tensor([0.0, 0.5]),
    }
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    # codes (1, -1) and (0, 1); reconstructions (1, -0.5) and (0, 1.5); squared errors 6.25 and 2.25
    outcome = L1(l1=0.1).loss(t, Step(x, torch.zeros(2, dtype=torch.bool)))
    assert float(outcome.loss) == pytest.approx((6.25 + 2.25) / 2 + 0.1 * (2 + 1) / 2)
    assert outcome.active.tolist() == [1, 2]


def test_the_gradient_of_the_loss_is_its_formula() -> None:
    """dL/dz = (2 (x̂ − x) Vᵀ + l1 sign z) / N, dL/dE = (dL/dz)ᵀ x, dL/dV = 2 zᵀ (x̂ − x) / N."""
    random = torch.Generator().manual_seed(0)
    t = tensors_of_l1(random, 3, 5)
    x = torch.randn(7, 5, generator=random, dtype=torch.float64)
    loss = L1(l1=0.3).loss(t, Step(x, torch.zeros(3, dtype=torch.bool))).loss
    to_encoder, to_atoms = torch.autograd.grad(loss, [t["encoder_weight"], t["atoms"]])
    with torch.no_grad():
        code = x @ t["encoder_weight"].T + t["encoder_bias"]
        back = code @ t["atoms"] + t["decoder_bias"]
        of_code = (2 * (back - x) @ t["atoms"].T + 0.3 * code.sign()) / 7
        torch.testing.assert_close(to_encoder, of_code.T @ x)
        torch.testing.assert_close(to_atoms, 2 * code.T @ (back - x) / 7)
