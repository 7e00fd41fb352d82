"""Applying and reverting a head edit against copying the touched rows: python benchmarks/edits.py.

The promise is three times `torch.empty_like(rows).copy_(rows)`, whose price depends on where the
allocator finds the memory; copying into memory that is there already is shown too. Applying also
verifies that the model is the edit's base: by SHA-256 the first time, by comparing the touched rows
with those verified then from the second time on. Reverting verifies that nobody changed the edited
rows, unless told to discard changes (unchecked). A single row is smaller than the price of a few
Python calls: there microseconds count, and what is left is comparing the whole weight ("compare")
and going through the modules of the whole network, since any of them may share the weight.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import timm
import torch
from torch import nn

from salve_plugin.control import application
from salve_plugin.control.base import Base, Fingerprint
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators import Gate
from salve_plugin.control.rows import same_bits
from salve_plugin.control.targets import Target
from salve_plugin.site import HEAD_INPUT, Site


def main() -> None:
    """Time each head, all rows and one, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"median of {options.repeats}, {options.threads} threads, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}; microseconds (times the copy)"
    )
    print(
        f"{'head':26}{'rows':>6}{'copy':>9}{'in place':>9}{'compare':>9}"
        f"{'apply':>16}{'revert':>16}{'unchecked':>16}{'first apply':>18}"
        f"{'formula only':>16}"
    )
    for name, head in (("resnet50", "fc"), ("vit_base_patch16_224", "head")):
        network = timm.create_model(name)
        for rows in (None, (7,)):
            report(network, head, rows, options.repeats)


def report(model: nn.Module, head: str, rows: tuple[int, ...] | None, repeats: int) -> None:
    """Print one line of the table."""
    torch.manual_seed(0)
    weight = model.get_parameter(f"{head}.weight")
    classes, width = weight.shape
    edit = Edit(
        site=Site(HEAD_INPUT, head, "in", "pooled", width, readers=(head,)),
        operator=Gate(nn.functional.normalize(torch.randn(1, width), dim=1), 5.0),
        targets=(Target(f"{head}.weight", None, "reader", "linear"),),
        rows=rows,
        base=Base({}, {f"{head}.weight": Fingerprint.of(weight)}),
    )
    touched = weight.detach() if rows is None else weight.detach()[list(rows)]
    factors = edit.gate.factors.float()
    copy: list[float] = []
    in_place: list[float] = []
    room, known = touched.clone(), weight.detach().clone()
    compare: list[float] = []
    apply: list[float] = []
    revert: list[float] = []
    unchecked: list[float] = []
    first: list[float] = []
    formula: list[float] = []
    edit.apply_(model)
    edit.revert_(model)
    for _ in range(repeats):  # interleaved, so that a busy machine slows all of them alike
        copy.append(timed(lambda: torch.empty_like(touched).copy_(touched)))
        in_place.append(timed(lambda: room.copy_(touched)))
        compare.append(timed(lambda: same_bits(weight.detach(), known)))
        formula.append(timed(lambda: touched * factors))
        apply.append(timed(lambda: edit.apply_(model)))
        revert.append(timed(lambda: edit.revert_(model)))
        edit.apply_(model)
        unchecked.append(timed(lambda: edit.revert_(model, on_changed="discard")))
    for _ in range(max(3, repeats // 20)):
        fresh = replace(edit)
        application._verified.clear()
        first.append(timed(partial(fresh.apply_, model)))
        fresh.revert_(model)
    base = statistics.median(copy)
    cells = [f"{1e6 * statistics.median(times):9.1f}" for times in (copy, in_place, compare)]
    for times, columns in ((apply, 16), (revert, 16), (unchecked, 16), (first, 18), (formula, 16)):
        middle = statistics.median(times)
        cells.append(f"{1e6 * middle:.0f} ({middle / base:.1f}x)".rjust(columns))
    name = f"{type(model).__name__} {classes}x{width}"
    print(f"{name:26}{'all' if rows is None else len(rows):>6}" + "".join(cells))


def timed(call: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
