"""Two processes that share each batch learn what one learns alone (Hugging Face accelerate)."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.fit import fit

SCRIPT = """
import os
import sys
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from salve_plugin.discover.training.rows import held_out
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError, ReadError

torch.set_num_threads(1)
source, out, learners = sys.argv[1:]
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
rows = load_file(source)["rows"]
run = Run(accelerator=accelerator)
n_training = int((~held_out(torch.arange(len(rows)))).sum())
# The last batch of an epoch has one row, too few for two processes: it is left out.
fit(rows, "topk", n_latents=12, k=3, steps=6, batch_size=n_training - 1, run=run)
try:
    fit(rows, "topk", n_latents=12, k=3, steps=6, batch_size=1, run=run)
except InputError as error:
    assert "batches of 1 rows cannot be shared by 2 processes" in str(error)
else:
    raise AssertionError("one row was shared by two processes")
for learner in learners.split(","):
    k = options(learner)
    dictionary = fit(
        rows, learner, n_latents=12, steps=30, batch_size=50, learning_rate=0.01,
        run=run, **k,
    )
    save_file(dictionary.tensors, f"{out}/{learner}-{accelerator.process_index}.safetensors")
    gradients = first_gradients(rows, learner, k, Team(accelerator))
    save_file(gradients, f"{out}/gradients-{learner}-{accelerator.process_index}.safetensors")

# The first process writes the checkpoints. A folder of its own for each, as on two machines that
# share none, must be noticed: the two would exchange gradients of different steps.
def interrupted(folder, stop):
    calls = []
    def gradient(x):
        calls.append(x)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return x
    return fit(
        rows, "gradient_topk", n_latents=12, k=3, steps=12, batch_size=50, learning_rate=0.01,
        gradient=gradient, run=Run(folder, 5, accelerator=accelerator),
    )

own, common = f"{out}/run-{accelerator.process_index}", f"{out}/run-0"
try:
    interrupted(own, 8)
except KeyboardInterrupt:
    pass
try:
    interrupted(own, None)
except ReadError as error:
    assert "from steps [5, 0]: not all of them see the checkpoint" in str(error), error
else:
    raise AssertionError("two processes went on from different steps")
resumed, whole = interrupted(common, None), interrupted(f"{out}/other", None)
assert resumed.digest == whole.digest
accelerator.end_training()
os._exit(0)  # gloo's threads may outlive the interpreter, which then aborts although all is done
"""

GRADIENTS = """
import torch
from salve_plugin.discover.learners import create
from salve_plugin.discover.learners import learners as listed
from salve_plugin.discover.learners.base import Start, Step
from salve_plugin.discover.recording.team import Team

def options(learner):
    known = {info.name: info.options for info in listed()}[learner]
    groups = {"groups": (0.25, 0.25)} if learner == "matryoshka" else {}
    return ({"k": 3} if "k" in known else {}) | groups

def first_gradients(rows, learner, k, team):
    torch.manual_seed(0)
    rule, batch = create(learner, k), rows[:50]
    atoms = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    tensors = rule.prepare(Start(batch, atoms, 0.5, torch.Generator().manual_seed(0)))
    tensors = {
        name: each.detach().double().requires_grad_(each.requires_grad)
        for name, each in tensors.items()
    }
    dead = torch.arange(12) < 2
    step = Step(team.share(batch).double(), dead, progress=0.5, team=team)
    rule.loss(tensors, step).loss.backward()
    trained = {name: each for name, each in tensors.items() if each.grad is not None}
    team.average_gradients(list(trained.values()))
    return {name: each.grad.clone() for name, each in trained.items()}
"""

SHARED: dict[str, Callable[..., dict[str, Any]]] = {}
exec(GRADIENTS, SHARED)
"""What the processes do, too."""

LEARNERS = ["l1", "relu_l1", "topk", "batch_topk", "jumprelu", "gated", "gba", "feature_choice"]
LEARNERS += ["mp", "matryoshka", "vl"]


@pytest.fixture(scope="module")
def rows() -> Tensor:
    random = torch.Generator().manual_seed(0)
    on = torch.rand(500, 12, generator=random) < 0.2
    return on * torch.rand(500, 12, generator=random) @ torch.randn(12, 8, generator=random)


@pytest.fixture(scope="module")
def shared(rows: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit every learner with two real processes over gloo.

    torchrun starts them, because on processors `accelerate launch` needs an MPI installation.
    """
    folder = tmp_path_factory.mktemp("team")
    save_file({"rows": rows}, folder / "rows.safetensors")
    (folder / "script.py").write_text(GRADIENTS + SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--master-port", str(port),
        str(folder / "script.py"), str(folder / "rows.safetensors"), str(folder),
        ",".join(LEARNERS),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("learner", LEARNERS)
def test_two_processes_end_with_the_dictionary_of_one(
    learner: str, rows: Tensor, shared: Path
) -> None:
    """Sums over rows are grouped differently, so the two differ by rounding."""
    k = SHARED["options"](learner)
    shared_by = {"n_latents": 12, "batch_size": 50, "learning_rate": 0.01, **k}
    alone = fit(rows, learner, steps=30, **shared_by)
    first, second = (load_file(shared / f"{learner}-{rank}.safetensors") for rank in (0, 1))
    for name, expected in alone.tensors.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=2e-3, atol=2e-3)
    moved = fit(rows, learner, steps=1, **shared_by)
    assert not torch.allclose(moved.atoms, alone.atoms, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("learner", LEARNERS)
def test_gradients_of_two_processes_are_those_of_one_on_the_same_batch(
    learner: str, rows: Tensor, shared: Path
) -> None:
    """In float64, with two dead latents, so that auxiliary losses and their normalizers count."""
    alone = SHARED["first_gradients"](rows, learner, SHARED["options"](learner), Team())
    together = load_file(shared / f"gradients-{learner}-1.safetensors")
    assert set(alone) == set(together)
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-9, atol=1e-12)
        assert gradient.abs().max() > 0


def test_a_process_alone_shares_nothing_and_changes_nothing() -> None:
    team, rows = Team(), torch.arange(10.0).reshape(5, 2)
    assert (team.size, team.rank) == (1, 0)
    for kept in (team.share(rows), team.sum(rows), team.mean(rows), team.gather(rows)):
        assert torch.equal(kept, rows)
