"""What the loss of dead latents adds to a step of TopK: python benchmarks/auxiliary_loss.py.

    python benchmarks/auxiliary_loss.py [--latents 2048 8192] [--dead 0.01 0.1 0.5]
        [--steps 40] [--precision float32]

Two runs from the same tensors, one with the auxiliary loss and one without, take their steps in
turns on the same batches, so that a busy machine slows both alike; what is compared are medians of
processor time (`time.process_time`), one thread. The rows are those of `dictionaries.py`, k = 32. A
given share of the latents, drawn at random, is kept from ever being active by an encoder of zeros
and a negative bias, and the learning rate is 0, so that they stay what they are.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.dictionaries import BATCH, ROWS, K, planted
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.loop import Done, State, train
from salve_plugin.discover.training.plan import Plan
from salve_plugin.discover.training.rows import Moments, RowReader
from salve_plugin.discover.training.start import start_of

UNTIMED = 5
"""Steps of each run before the clock counts."""


def main() -> None:
    """Time every number of latents and every share of dead ones, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--dead", type=float, nargs="+", default=[0.01, 0.1, 0.5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread, "
        f"{options.precision}, {BATCH} rows a step, median of {options.steps} steps in turns"
    )
    print(f"{'latents':>8}{'dead':>7}{'without, ms':>13}{'with, ms':>10}{'added':>8}")
    rows = planted(0)["train"]
    for n_latents in options.latents:
        for share in options.dead:
            plan = Plan(10**6, 0, ROWS, BATCH, autocast=options.precision == "bfloat16")
            with_it, without = times(rows, n_latents, share, plan, options.steps)
            print(
                f"{n_latents:8}{share:7.0%}{1e3 * without:13.1f}{1e3 * with_it:10.1f}"
                f"{with_it / without - 1:8.1%}",
                flush=True,
            )


def times(
    rows: Tensor, n_latents: int, share: float, plan: Plan, steps: int
) -> tuple[float, float]:
    """Return the median seconds of a step with the loss of the dead, and without."""
    data = RowReader(rows, None)
    moments = Moments.of(data)
    start = start_of(data, moments, TopK(K), n_latents, initialization="random")
    batches = [batch for batch in torch.split(moments.scaled(rows), BATCH) if len(batch) == BATCH]
    dead = torch.randperm(n_latents, generator=start.random)[: round(share * n_latents)]
    runs: list[Iterator[Done]] = []
    for rule in (TopK(K), TopK(K, aux=0.0)):
        state = State.fresh(rule.prepare(start), plan, 0.0)
        with torch.no_grad():
            state.tensors["encoder_weight"][dead] = 0
            state.tensors["encoder_bias"][dead] = -0.1
        state.silent[dead] = plan.patience
        every = chain.from_iterable(repeat(batches))
        runs.append(train(rule, state, every, plan, team=Team()))
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(UNTIMED + steps):
        pairs = list(zip(runs, taken, strict=True))
        for run, own in pairs[:: 1 if turn % 2 else -1]:  # who comes first finds a colder cache
            before = time.process_time()
            next(run)
            own.append(time.process_time() - before)
    with_it, without = (statistics.median(own[UNTIMED:]) for own in taken)
    return with_it, without


if __name__ == "__main__":
    main()
