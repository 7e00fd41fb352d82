"""`import salve_plugin` against `import torch`, each in fresh interpreters, in turn.

Prints the median seconds of both and their ratio.
"""

import argparse
import platform
import subprocess
import sys
from importlib.metadata import version
from statistics import median
from time import perf_counter

STATEMENTS = {
    "import torch": "import torch",
    "import salve_plugin": "import torch, salve_plugin",
    "all public names": "import salve_plugin as s; [getattr(s, n) for n in s.__all__]",
}


def seconds(statement: str) -> float:
    """Run a statement in a fresh interpreter and return the wall time."""
    started = perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for statement in STATEMENTS.values():
        seconds(statement)
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(rounds):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    base = times["import torch"]
    print(
        f"{platform.machine()}, python {platform.python_version()}, torch {version('torch')}, "
        f"captum {version('captum')}, {rounds} rounds"
    )
    for name, values in times.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        print(f"{name:22s} {median(values):6.2f} s   {median(ratios):5.2f} x torch")


if __name__ == "__main__":
    main()
