"""The examples of the page's section on writers run as they stand."""

import re
from pathlib import Path

import pytest
import torch

import salve_plugin as salve
from salve_plugin import attach
from salve_plugin.demo import digits

ROOT = Path(__file__).parents[3]


def test_the_examples_run(digits_test: digits.Split, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "edits.md").read_text(encoding="utf-8")
    section = page.split("\n## Writers\n")[1].split("\n## ")[0]
    examples = re.findall(r"```python\n(.*?)```", section, re.S)
    assert len(examples) == 2
    hooked = attach(digits.load("vit", ROOT / "tests" / "fixtures" / "digits_vit.safetensors"))
    loader = digits_test.loader()
    marked = digits_test.images.clone()
    marked[:, :, :3] = marked.max()
    with_ = [(marked, digits_test.labels)]
    names: dict[str, object] = {
        "salve": salve,
        "hooked": hooked,
        "loader": loader,
        "acts": salve.record(hooked, loader, progress=False),
        "with_acts": salve.record(hooked, with_, progress=False),
        "without_acts": salve.record(hooked, loader, progress=False),
        "has": digits_test.labels % 2 == 0,
        "images": digits_test.images[digits_test.labels == 3],
        "eights": digits_test.images[digits_test.labels == 8],
    }
    for example in examples:
        exec(compile(example, "edits.md", "exec"), names)
    accuracy = dict(re.findall(r"^(\w+) ([\d.]+) ", capsys.readouterr().out, re.M))
    assert list(accuracy) == ["mask", "row", "rome", "coar", "prune", "refit", "agree"]
    assert float(accuracy["mask"]) == 0
    assert float(accuracy["refit"]) > 0.9
    assert float(accuracy["agree"]) > 0.9
    for edits in ([names["edit"]], names["several"]):
        assert isinstance(edits, list | tuple)
        with torch.no_grad():
            copy = edits[0].edited(hooked.model)
            for edit in edits[1:]:
                edit.apply_(copy)
            predicted = copy(digits_test.images)[digits_test.labels == 3].argmax(1)
        assert float((predicted == 8).double().mean()) > 0.5
