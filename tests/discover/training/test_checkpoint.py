"""A killed fit goes on where it was, to the same bits; foreign or damaged state is refused."""

import hashlib
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from salve_plugin.discover.learners import LEARNERS
from salve_plugin.discover.learners.base import Solver
from salve_plugin.discover.training.checkpoint import FILE
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.progress import Progress
from salve_plugin.discover.training.run import Run
from salve_plugin.errors import FolderInUseError, InputError, ReadError, WriteError

NAMES = sorted(name for name, each in LEARNERS.items() if not issubclass(each, Solver))


def rows() -> Tensor:
    random = torch.Generator().manual_seed(0)
    on = torch.rand(500, 12, generator=random) < 0.2
    return on * torch.rand(500, 12, generator=random) @ torch.randn(12, 8, generator=random)


class KilledError(Exception):
    """Raised in the middle of a fit."""


def killed_at(step: int) -> Run:
    def callback(progress: Progress) -> None:
        if progress.step >= step:
            raise KilledError

    return Run(callback=callback)


# Sixty steps are too few to reach a target.
@pytest.mark.filterwarnings("ignore:.*not target_l0")
@pytest.mark.parametrize("learner", NAMES)
def test_an_interrupted_fit_ends_with_the_same_bits(learner: str, tmp_path: Path) -> None:
    arguments: dict[str, object] = {
        "n_latents": 12,
        "steps": 60,
        "batch_size": 64,
        "learning_rate": 0.01,
    }
    if "k" in {field.name for field in fields(LEARNERS[learner])}:
        arguments["k"] = 3
    if learner == "matryoshka":
        arguments["groups"] = (0.25, 0.25)
    if learner == "gradient_topk":
        arguments["gradient"] = torch.ones_like
    if LEARNERS[learner].l0_control == "weight":
        arguments["target_l0"] = 3  # the penalty's weight is a part of the state
    whole = fit(rows(), learner, **arguments)  # type: ignore[arg-type] # plain arguments
    interrupted = killed_at(37)
    run = Run(checkpoint=tmp_path, checkpoint_every=10, callback=interrupted.callback)
    with pytest.raises(KilledError):
        fit(rows(), learner, run=run, **arguments)  # type: ignore[arg-type] # plain arguments
    assert (tmp_path / FILE).exists()
    seen: list[int] = []
    run = Run(tmp_path, 10, callback=lambda progress: seen.append(progress.step))
    resumed = fit(rows(), learner, run=run, **arguments)  # type: ignore[arg-type] # plain arguments
    assert seen[0] == 31  # a tenth of the steps was done after step 30, the last checkpoint
    assert resumed.digest == whole.digest
    assert dict(resumed.meta) == dict(whole.meta)
    assert not (tmp_path / FILE).exists()


def test_a_fit_that_ends_early_ends_where_it_would_have_after_an_interruption(
    tmp_path: Path,
) -> None:
    """Interrupted once while it stands still, and once when the decay, a sixth, has begun."""
    arguments = {"n_latents": 12, "k": 3, "steps": 400, "learning_rate": 0.01, "patience": 5}
    whole = fit(rows(), "topk", **arguments)  # type: ignore[arg-type] # plain arguments
    end = int(whole.meta["steps"])  # type: ignore[call-overload] # a number
    assert end < 400
    for step in (end * 5 // 6 - 20, end - 10):
        run = Run(tmp_path, 7, callback=killed_at(step).callback)
        with pytest.raises(KilledError):
            fit(rows(), "topk", run=run, **arguments)  # type: ignore[arg-type] # plain arguments
    resumed = fit(rows(), "topk", run=Run(tmp_path, 7), **arguments)  # type: ignore[arg-type] # plain arguments
    assert resumed.digest == whole.digest
    assert dict(resumed.meta) == dict(whole.meta)


def test_a_checkpoint_with_other_tensors_is_refused(tmp_path: Path) -> None:
    """As another version might have written."""
    run = Run(tmp_path, 5, callback=killed_at(20).callback)
    arguments = {"n_latents": 12, "steps": 40, "learning_rate": 0.01}
    with pytest.raises(KilledError):
        fit(rows(), "gated", run=run, **arguments)  # type: ignore[arg-type] # plain arguments
    path = tmp_path / FILE
    tensors = load(path.read_bytes()[32:])
    del tensors["tensor.log_gain"]
    content = save(tensors)
    path.write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(ReadError, match="is of another version of salve_plugin"):
        fit(rows(), "gated", run=Run(tmp_path, 5), **arguments)  # type: ignore[arg-type] # plain arguments


KILLED = """
import os, signal, sys
import torch
from safetensors.torch import load_file
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.fit import fit

def kill(progress):
    if progress.step >= 30:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
rows = load_file(sys.argv[1])["rows"]
fit(rows, "topk", n_latents=12, k=3, steps=50, run=Run(sys.argv[2], 7, callback=kill))
"""


def test_a_process_that_is_really_killed_is_resumed_by_the_next(tmp_path: Path) -> None:
    source = tmp_path / "rows.safetensors"
    save_file({"rows": rows()}, source)
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path)]
    done = subprocess.run(command, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / FILE).exists()
    resumed = fit(rows(), "topk", n_latents=12, k=3, steps=50, run=Run(tmp_path, 7))
    whole = fit(rows(), "topk", n_latents=12, k=3, steps=50)
    assert resumed.digest == whole.digest
    assert resumed.meta["learning_rate"] == whole.meta["learning_rate"]


def test_another_run_may_not_continue_a_checkpoint(tmp_path: Path) -> None:
    interrupted = Run(tmp_path, 5, callback=killed_at(20).callback)
    with pytest.raises(KilledError):
        fit(rows(), "topk", n_latents=12, k=3, steps=40, learning_rate=0.01, run=interrupted)
    again = {"n_latents": 12, "k": 3, "steps": 40, "learning_rate": 0.01}
    run = Run(tmp_path, 5)
    for change, what in (({"seed": 1}, "seed"), ({"k": 2}, "options"), ({"steps": 41}, "steps")):
        with pytest.raises(InputError, match=f"run with other .*{what}"):
            fit(rows(), "topk", run=run, **{**again, **change})  # type: ignore[arg-type] # plain arguments
    with pytest.raises(InputError, match="run with other scale"):
        fit(2 * rows(), "topk", run=run, **again)  # type: ignore[arg-type] # plain arguments
    with pytest.raises(InputError, match="run with other rows"):  # of the same scale
        fit(-rows(), "topk", run=run, **again)  # type: ignore[arg-type] # plain arguments
    assert (tmp_path / FILE).exists()


def test_two_fits_do_not_share_a_folder(tmp_path: Path) -> None:
    def other(progress: Progress) -> None:
        if progress.step == 20:
            with pytest.raises(FolderInUseError, match="choose another folder"):
                fit(rows(), "l1", n_latents=4, steps=2, run=Run(tmp_path))

    fit(
        rows(),
        "topk",
        n_latents=12,
        k=3,
        steps=40,
        learning_rate=0.01,
        run=Run(tmp_path, 5, callback=other),
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_refused_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no path"):
        Run(checkpoint="")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="Not a directory"):
        fit(rows(), "topk", n_latents=12, k=3, steps=1, run=Run(tmp_path / "file"))


def test_no_damage_to_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    interrupted = Run(tmp_path, 5, callback=killed_at(20).callback)
    with pytest.raises(KilledError):
        fit(rows(), "topk", n_latents=12, k=3, steps=40, learning_rate=0.01, run=interrupted)
    path = tmp_path / FILE
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:20], b"", whole[:99] + bytes([whole[99] ^ 1]) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(ReadError, match="checkpoint"):
            fit(rows(), "topk", n_latents=12, k=3, steps=40, learning_rate=0.01, run=Run(tmp_path))
