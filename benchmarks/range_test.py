"""Can short runs tell which learning rate suits a wide dictionary? TopK, run by run.

R² on training rows and on held-out rows after runs of several lengths, each with its own decay, as
the range test of `fit` makes them. Data: the planted rows of `dictionaries.py` (18 000 of width 512
to train on, k = 32), and the last stage of lite0 as in `learners.py` (19 757 of width 320, k = 16).

    python benchmarks/range_test.py [--data planted lite0] [--latents 2048] [--steps 100 200 400]
        [--rates 1.25e-3 2.5e-3 5e-3] [--initialization rows] [--patience 3]
"""

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import salve_plugin as salve

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.dictionaries import K, planted
from benchmarks.learners import lite0_data


def rows_of(name: str) -> tuple[Tensor, int]:
    """Return a data set's rows, and how many latents are to be active in each."""
    if name == "planted":
        return planted(0)["train"], K
    with tempfile.TemporaryDirectory() as folder:
        return lite0_data(Path(folder))[1].tensor(), 16


def main() -> None:
    """Print one table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=["planted", "lite0"])
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--rates", type=float, nargs="+", default=[1.25e-3, 2.5e-3, 5e-3])
    parser.add_argument("--initialization", default="rows")
    parser.add_argument("--patience", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, seed 0, TopK")
    for name in args.data:
        rows, k = rows_of(name)
        print(f"\n{name}: {len(rows)} rows x {rows.shape[1]}, {args.latents} latents, k = {k}")
        print(f"{'rate':>8}" + "".join(f"{steps:>10} steps" for steps in args.steps))
        for rate in args.rates:
            print(f"{rate:8.3g}", end="")
            for steps in args.steps:
                found = salve.fit(
                    rows, "topk", n_latents=args.latents, k=k, steps=steps, learning_rate=rate,
                    initialization=args.initialization, patience=args.patience,
                ).meta  # fmt: skip
                print(f"{found['train_r2']:8.3f} {found['held_out_r2']:.3f}", end="  ", flush=True)
            print()


if __name__ == "__main__":
    main()
