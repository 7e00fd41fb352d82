"""A progress bar leaves one line, wherever it is shown."""

import pytest
import torch

import salve_plugin as salve
from salve_plugin.faces.progress import bar


def test_what_is_not_shown_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("recording", 3, show=False) as update:
        update(1)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_one_line_with_the_last_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    acts = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    salve.fit(acts, "l1", n_latents=4, steps=20, learning_rate=0.01, run=salve.Run(progress=True))
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("fitting steps")
    assert "20/20" in line
    assert "R²" in line


def test_a_sweep_counts_its_trials_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    acts = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    run = salve.Run(progress=True)
    trials = salve.sweep(acts, "topk", {"k": [1, 2]}, n_latents=4, steps=5, run=run)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("trials")
    assert "2/2" in line
    assert f"{len(trials)} fitted" in line
