"""How a fit is steered, watched, stopped and interrupted."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from salve_plugin.discover.kernels.precision import has_bfloat16
from salve_plugin.discover.learners import LEARNERS, learners
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training import rate
from salve_plugin.discover.training.checkpoint import FILE
from salve_plugin.discover.training.fit import fit
from salve_plugin.discover.training.progress import Progress
from salve_plugin.discover.training.rows import Moments, RowReader, held_out
from salve_plugin.discover.training.run import Run
from salve_plugin.discover.training.start import start_of
from salve_plugin.errors import InputError, ReadError

MakeRecording = Callable[..., Activations]


def rows(n: int = 1500) -> Tensor:
    random = torch.Generator().manual_seed(0)
    on = torch.rand(n, 24, generator=random) < 0.15
    codes = on * (0.5 + torch.rand(n, 24, generator=random))
    return codes @ torch.randn(24, 16, generator=random)


@pytest.mark.parametrize("learner", ["relu_l1", "jumprelu", "gated"])
@pytest.mark.parametrize("target", [2.0, 5.0])
def test_penalized_learners_reach_a_target_number_of_active_latents(
    learner: str, target: float
) -> None:
    found = fit(rows(), learner, n_latents=24, target_l0=target, steps=500, learning_rate=0.01)
    assert found.meta["l0"] == pytest.approx(target, rel=0.2)


def test_learners_with_k_take_it_from_the_target() -> None:
    found = fit(rows(), "topk", n_latents=24, target_l0=2.6, steps=5, learning_rate=0.01)
    assert found.options["k"] == 3
    with pytest.raises(InputError, match="'l1' has no sparsity that could be steered"):
        fit(rows(), "l1", target_l0=3.0)
    with pytest.raises(InputError, match="target_l0 must be a finite number above 0, got -1"):
        fit(rows(), "topk", target_l0=-1.0)
    with pytest.raises(InputError, match=r"target_l0 = 25 latents .* in a dictionary of 24"):
        fit(rows(), "relu_l1", n_latents=24, target_l0=25)


def test_a_target_that_was_missed_is_told() -> None:
    with pytest.warns(UserWarning, match=r"active, not target_l0 = 0\.01: train for more"):
        fit(rows(), "relu_l1", n_latents=24, target_l0=0.01, steps=40, learning_rate=0.01)


@pytest.mark.parametrize("learner", ["relu_l1", "gated", "jumprelu"])
def test_patience_waits_for_the_target(learner: str) -> None:
    """While the penalty grows R² falls, which is no reason to stop."""
    found = fit(
        rows(), learner, n_latents=24, target_l0=3, steps=1500, learning_rate=0.01, patience=1
    )
    assert found.meta["steps"] < 1500  # type: ignore[operator] # meta holds plain values
    assert found.meta["l0"] == pytest.approx(3, rel=0.2)


def test_a_callback_sees_the_fit_improve() -> None:
    seen: list[Progress] = []
    found = fit(
        rows(), "topk", n_latents=24, k=3, steps=200, learning_rate=0.01,
        run=Run(callback=seen.append),
    )  # fmt: skip
    assert [progress.step for progress in seen] == list(range(4, 201, 4))
    assert {progress.steps for progress in seen} == {200}
    r2 = [progress.r2 or 0.0 for progress in seen]
    assert r2[-1] == pytest.approx(found.meta["held_out_r2"], abs=1e-5)
    assert r2[-1] > r2[0]
    assert all(0 < progress.l0 <= 3 for progress in seen)
    assert seen[-1].learning_rate < max(progress.learning_rate for progress in seen)


def test_watching_does_not_change_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    alone = fit(rows(), "topk", n_latents=24, k=3, steps=30, learning_rate=0.01)
    watched = fit(
        rows(), "topk", n_latents=24, k=3, steps=30, learning_rate=0.01, run=Run(progress=True)
    )
    assert watched.digest == alone.digest
    assert "R²" in capsys.readouterr().err


def test_patience_ends_a_fit_that_stands_still_and_keeps_its_quality() -> None:
    whole = fit(rows(), "topk", n_latents=24, k=3, steps=1500, learning_rate=0.01)
    early = fit(rows(), "topk", n_latents=24, k=3, steps=1500, learning_rate=0.01, patience=3)
    assert early.meta["steps"] < 1200  # type: ignore[operator] # meta holds plain values
    assert early.meta["held_out_r2"] > whole.meta["held_out_r2"] - 0.02  # type: ignore[operator] # as above


def test_the_range_test_takes_the_best_of_its_rates() -> None:
    """Short runs with each rate by hand end no better than the chosen one's, by more than noise."""
    chosen = fit(rows(), "topk", n_latents=24, k=3, steps=40)
    assert chosen.meta["learning_rate"] in rate.RATES
    scores = {
        each: fit(rows(), "topk", n_latents=24, k=3, steps=40, learning_rate=each).meta["train_r2"]
        for each in rate.RATES
    }
    assert scores[chosen.meta["learning_rate"]] >= max(scores.values()) - 0.02  # type: ignore[operator, type-var] # plain values


def test_atoms_can_be_kept_while_the_encoder_learns() -> None:
    data = RowReader(rows(), None)
    moments = Moments.of(data)
    from salve_plugin.discover.learners import create

    start = start_of(data, moments, create("topk", {"k": 3}), 24, initialization="random", seed=5)
    frozen = fit(
        rows(), "topk", n_latents=24, k=3, steps=60, learning_rate=0.01, seed=5,
        initialization="random", train_atoms=False,
    )  # fmt: skip
    torch.testing.assert_close(frozen.atoms, start.atoms)
    assert not torch.allclose(frozen.encoder_weight, start.gain * start.atoms, atol=0.01)
    with pytest.raises(InputError, match="'archetypal' makes its atoms from other tensors"):
        fit(rows(), "archetypal", n_latents=24, k=3, steps=5, train_atoms=False)
    with pytest.raises(InputError, match="'itda' has nothing to learn but its atoms"):
        fit(rows(), "itda", n_latents=24, k=3, train_atoms=False)


def test_bfloat16_agrees_with_float32_and_warns_where_the_processor_lacks_it() -> None:
    arguments = {"n_latents": 24, "k": 3, "steps": 60, "learning_rate": 0.01}
    exact = fit(rows(), "topk", **arguments)  # type: ignore[arg-type] # plain arguments
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rough = fit(rows(), "topk", run=Run(precision="bfloat16"), **arguments)  # type: ignore[arg-type] # plain arguments
    slow = [str(w.message) for w in caught if "no bfloat16 instructions" in str(w.message)]
    assert bool(slow) != has_bfloat16()
    assert rough.atoms.dtype == torch.float32
    assert rough.digest != exact.digest
    assert rough.meta["held_out_r2"] == pytest.approx(exact.meta["held_out_r2"], abs=0.02)
    with pytest.raises(InputError, match="no precision 'float16'; choose one of"):
        fit(rows(), "topk", k=3, run=Run(precision="float16"))


@pytest.mark.filterwarnings("ignore:this processor has no bfloat16")
@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_every_learner_trains_in_bfloat16(learner: str) -> None:
    options: dict[str, Any] = {"n_latents": 24, "steps": 15, "learning_rate": 0.01}
    options |= {"k": 3} if "k" in {info.name: info.options for info in learners()}[learner] else {}
    options |= {"gradient": torch.ones_like} if learner == "gradient_topk" else {}
    exact = fit(rows(), learner, **options)
    rough = fit(rows(), learner, run=Run(precision="bfloat16"), **options)
    assert rough.meta["held_out_r2"] == pytest.approx(exact.meta["held_out_r2"], abs=0.03)


def test_a_diverging_fit_says_so() -> None:
    with pytest.raises(InputError, match="diverged at learning_rate 1e\\+30"):
        fit(rows(), "relu_l1", steps=30, learning_rate=1e30)


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="gradient returned shape"):
        fit(rows(), "gradient_topk", k=3, steps=3, gradient=lambda x: x[:, :5])


def test_a_damaged_value_in_a_shard_is_named(make_recording: MakeRecording) -> None:
    x = rows(300)
    at = int((~held_out(torch.arange(300))).nonzero()[150])
    x[at, 3] = torch.nan
    with pytest.raises(InputError, match=f"NaN or infinite values: row {at} is the first"):
        fit(make_recording(x, torch.arange(300) % 2, shard_rows=100), "topk", k=3)


def test_a_shard_lost_during_a_fit_loses_nothing(
    make_recording: MakeRecording, tmp_path: Path
) -> None:
    acts = make_recording(rows(600), torch.arange(600) % 2, shard_rows=200)
    shard = acts.folder / "shard-00001.safetensors"
    content = shard.read_bytes()

    def lose(progress: Progress) -> None:
        if progress.step == 20:
            shard.write_bytes(content[:-500])

    arguments = {"n_latents": 24, "k": 3, "steps": 50, "batch_size": 64, "learning_rate": 0.01}
    folder = tmp_path / "run"
    with pytest.raises(ReadError, match="shard-00001"):
        fit(acts, "topk", run=Run(folder, 5, callback=lose), **arguments)  # type: ignore[arg-type] # plain arguments
    assert (folder / FILE).exists()
    shard.write_bytes(content)
    resumed = fit(acts, "topk", run=Run(folder, 5), **arguments)  # type: ignore[arg-type] # plain arguments
    assert resumed.digest == fit(acts, "topk", **arguments).digest  # type: ignore[arg-type] # plain arguments


GROWTH = """
import resource, sys
import torch
from pathlib import Path
from safetensors.torch import save_file
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.shards import Index, Shard
from salve_plugin.discover.training.fit import fit
from salve_plugin.site import Site

torch.set_num_threads(1)
folder, n_shards = Path(sys.argv[1]), int(sys.argv[2])
random = torch.Generator().manual_seed(0)
shards = []
for number in range(n_shards):
    path = folder / Shard.name(number)
    each = 20_000
    save_file(
        {"activations": torch.randn(each, 64, generator=random), "labels": torch.zeros(each).long(),
         "images": torch.arange(number * each, (number + 1) * each)}, path, {"format": "pt"})
    shards.append(Shard(path.name, each, each, path.stat().st_size, "", ()))
site = Site("x", "fc", "in", "pooled", 64)
Index(site, {}, "", None, 1, "float32", tuple(shards), True).write(folder)
acts = Activations.load(folder)
fit(acts, "topk", n_latents=128, k=8, steps=n_shards * 18, batch_size=1024, learning_rate=0.01)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_stays_flat_while_the_recording_grows_tenfold(tmp_path: Path) -> None:
    """100 000 and 1 000 000 rows, one pass over each: the peak resident set within ten percent."""
    peaks = []
    for n_shards in (5, 50):
        folder = tmp_path / str(n_shards)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(folder), str(n_shards)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(done.stdout))
    assert peaks[1] == pytest.approx(peaks[0], rel=0.1)
