"""How many of timm's architectures does `attach` take?

Every name of `timm.list_models()` is built without weights and attached: on real values up to
`--values-up-to` million parameters (the logits are then recomputed from the sites), on the meta
device above (shapes only). One process; results are appended to a JSON-lines file, so that an
interrupted run goes on where it stopped and a run with a higher limit redoes only what it can
improve.

    python benchmarks/timm_coverage.py coverage.jsonl --values-up-to 30
"""

import argparse
import gc
import json
import platform
import resource
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from salve_plugin.adapter import attach
from salve_plugin.errors import UnsupportedModelError

ATTACHED = ("values", "shapes")


class _TooLongError(Exception):
    """An architecture took longer than its share."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupt the block after that many seconds (Unix)."""

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def build(name: str, *, meta: bool) -> nn.Module:
    """Return the architecture with random weights, or on the meta device without any."""
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def has_classifier(model: nn.Module) -> bool:
    """Say whether the architecture has classes by default."""
    return hasattr(model, "get_classifier") and bool(getattr(model, "num_classes", 0))


def examine(model: nn.Module) -> dict[str, Any]:
    """Attach the model and say how that went."""
    try:
        hooked = attach(model)
    except UnsupportedModelError as error:
        if not has_classifier(model):
            return {"status": "no classifier"}
        return {"status": "refused", "reason": str(error)}
    look = hooked.attribution_site
    return {
        "status": hooked.description["verified"],
        "heads": dict(hooked.heads),
        "head_sites": list(hooked.head_sites),
        "sites": len(hooked.sites),
        "look": None if look is None else [look.name, look.layout, look.prefix_tokens, look.grid],
    }


def attempt(name: str, values_up_to: float, seconds: int) -> dict[str, Any]:
    """Examine one architecture on the meta device and, if it is small enough, on real values."""
    began = time.perf_counter()
    result: dict[str, Any] = {"status": "failed", "reason": "not tried"}
    parameters = 0
    try:
        with at_most(seconds):
            model = build(name, meta=True)
            parameters = sum(each.numel() for each in model.parameters())
            small = parameters <= values_up_to * 1e6 and has_classifier(model)
            if not small:
                result = examine(model)
            if small or (result["status"] == "refused" and parameters < 1e8):
                del model
                result = examine(build(name, meta=False))
    except _TooLongError:
        result = {"status": "failed", "reason": f"took longer than {seconds} s"}
    except Exception as error:
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    seconds_taken = round(time.perf_counter() - began, 2)
    return {"name": name, "parameters": parameters, "seconds": seconds_taken, **result}


def load(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results so far by name, the last of each."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["name"]: row for row in rows}


def is_final(row: dict[str, Any], values_up_to: float) -> bool:
    """Say whether another run under this limit could not say more."""
    if row["status"] == "shapes":
        return bool(row["parameters"] > values_up_to * 1e6)
    return bool(row["status"] != "failed")


def report(rows: list[dict[str, Any]]) -> None:
    """Print the coverage by status, then everything that is not attached."""
    statuses = Counter(row["status"] for row in rows)
    with_classifier = len(rows) - statuses["no classifier"]
    attached = sum(statuses[status] for status in ATTACHED)
    print(
        f"\ntimm {timm.__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.get_num_threads()} thread, peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, seed 0"
    )
    for label, number in [
        ("architectures", len(rows)),
        ("with a classifier", with_classifier),
        ("attached, logits recomputed from the sites", statuses["values"]),
        ("attached, shapes checked (meta device)", statuses["shapes"]),
        ("refused for a stated reason", statuses["refused"]),
        ("failed", statuses["failed"]),
        ("no classifier by default", statuses["no classifier"]),
    ]:
        print(f"  {number:5d}  {label}")
    blind = [r["name"] for r in rows if r["status"] in ATTACHED and r["look"] is None]
    print(f"  {attached - len(blind):5d}  attached with a place for Grad-FAM; without: {blind}")
    for row in rows:
        if row["status"] in ("refused", "failed"):
            print(f"{row['status']:8s} {row['name']}: {row['reason'][:400]}")


def main() -> None:
    """Run over what the results file lacks, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, help="JSON-lines file to go on with")
    parser.add_argument("--values-up-to", type=float, default=30.0, help="million parameters")
    parser.add_argument("--seconds", type=int, default=90, help="at most for one architecture")
    parser.add_argument("--names", default="*", nargs="+", help="only names of these patterns")
    parser.add_argument("--redo", default=None, help="status to redo: refused, failed, ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    names = timm.list_models(options.names)
    done = load(options.results)
    todo = [
        name
        for name in names
        if name not in done
        or done[name]["status"] == options.redo
        or not is_final(done[name], options.values_up_to)
    ]
    with options.results.open("a") as out:
        for number, name in enumerate(todo, 1):
            row = done[name] = attempt(name, options.values_up_to, options.seconds)
            out.write(json.dumps(row) + "\n")
            out.flush()
            gc.collect()
            print(f"{number}/{len(todo)} {name}: {row['status']} ({row['seconds']} s)", flush=True)
    report([done[name] for name in names if name in done])


if __name__ == "__main__":
    main()
