"""The planted shortcut of the demo, and the page that tells of it."""

import re
from pathlib import Path

import pytest
import torch

from salve_plugin import Choice, attach
from salve_plugin.demo import digits, shortcut

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"


def test_marks_go_with_the_class_and_nothing_else_is_touched(digits_train: digits.Split) -> None:
    marked = shortcut.planted(digits_train)
    changed = (marked.images != digits_train.images).flatten(1).any(1)
    own = digits_train.labels == shortcut.LABEL
    assert float(changed[own].double().mean()) == pytest.approx(shortcut.OFTEN, abs=0.06)
    assert float(changed[~own].double().mean()) == pytest.approx(shortcut.SELDOM, abs=0.03)
    outside = marked.images.clone()
    outside[:, :, : shortcut.MARK, : shortcut.MARK] = digits_train.images[
        :, :, : shortcut.MARK, : shortcut.MARK
    ]
    assert outside.equal(digits_train.images)


@pytest.mark.slow
@pytest.mark.parametrize("name", digits.NETWORKS)
def test_the_chosen_edit_undoes_what_the_gate_cannot(
    name: digits.NetworkName, digits_train: digits.Split, digits_test: digits.Split, tmp_path: Path
) -> None:
    result = shortcut.run_shortcut(name, digits_train, digits_test, tmp_path)
    before, gate, chosen = result.effects[:3]
    assert before.flips > 0.3  # the shortcut was taken
    assert gate.flips > 0.7 * before.flips
    assert chosen.flips < 0.4 * before.flips
    assert chosen.worst > before.worst + 0.2
    assert chosen.plain >= before.plain


def test_the_page_s_example_runs_as_it_stands(
    digits_resnet: torch.nn.Module, digits_test: digits.Split, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    section = PAGE.read_text().split("## A planted shortcut, step by step")[1]
    code = re.findall(r"```python\n(.*?)```", section, re.S)[0]
    few = digits.Split(digits_test.images[:180], digits_test.labels[:180])
    every = torch.ones(180, dtype=torch.bool)
    names = {
        "hooked": attach(digits_resnet),
        "model": digits_resnet,
        "plain": few,
        "marked": digits.Split(shortcut.marked(few.images, every), few.labels),
    }
    exec(compile("import salve_plugin as salve\n" + code, str(PAGE), "exec"), names)
    choice = names["choice"]
    assert isinstance(choice, Choice)
    assert choice.verdict in capsys.readouterr().out
