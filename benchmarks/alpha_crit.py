"""Exact critical strengths against 50-step bisection: python benchmarks/alpha_crit.py.

Both get the same head inputs, chunk by chunk, so that memory stays bounded at any number of images.
Bisection is vectorized, works in place and takes the pass size and thread count that suit it best;
it is run in float64, which it needs for the exact solver's accuracy, and in float32. Because logits
are not monotone in the strength, bisection also lands on roots that are not the first, or on none.

A second table times the flip, the first of all other classes to overtake the label, with all rows
edited: against one problem for each class, as the definition says (on fewer images, so that it
ends), and against the limit, one product of the images with the head in float64.
"""

import argparse
import platform
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from salve_plugin.control.knots import LIMIT
from salve_plugin.control.strength import critical_flip_strength, critical_strength

HEADS = ((10, 512), (1000, 2048), (21_841, 1024))
"""Classes and width of heads whose flips are timed."""

CHUNK = 4096
STEPS = 50
BIAS = -0.1


def main() -> None:
    """Time both on the same data and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="of each chunk; the least counts")
    parser.add_argument("--flip-images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = torch.Generator().manual_seed(options.seed)
    weight = torch.randn(options.width, generator=draw) * 0.05
    direction = torch.nn.functional.normalize(torch.randn(options.width, generator=draw), dim=0)
    print(
        f"{options.images} images x {options.width} features, {options.threads} threads, seed "
        f"{options.seed}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.processor() or platform.machine()}"
    )
    first = next(chunks(options.images, options.width, options.seed))
    sizes = {
        dtype: best_size(weight, direction, first, dtype)
        for dtype in (torch.float64, torch.float32)
    }
    methods: dict[str, Callable[[Tensor], Tensor]] = {
        "exact": lambda x: critical_strength(weight, BIAS, direction, x),
        **{
            f"bisection {str(dtype).removeprefix('torch.')}": partial(
                bisection, weight, direction, dtype=dtype, size=size
            )
            for dtype, size in sizes.items()
        },
    }
    seconds = dict.fromkeys(methods, 0.0)
    roots: dict[str, list[Tensor]] = {name: [] for name in methods}
    residual = dict.fromkeys(methods, 0.0)
    for x in chunks(options.images, options.width, options.seed):
        for name, method in methods.items():
            took, found = least(partial(method, x), options.repeats)
            seconds[name] += took
            roots[name].append(found)
            residual[name] = max(residual[name], worst_residual(weight, direction, x, found))
    exact = torch.cat(roots["exact"])
    print(f"{'':22}{'seconds':>9}{'slower':>9}{'worst |logit|/|z(0)|':>23}{'wrong roots':>13}")
    for name, took in seconds.items():
        wrong = int(differs(torch.cat(roots[name]), exact).sum())
        print(
            f"{name:22}{took:9.2f}{took / seconds['exact']:8.1f}x{residual[name]:23.1e}{wrong:13d}"
        )
    print(
        f"{int((exact == 0).sum())} images need no strength, {int(exact.isinf().sum())} have no "
        f"root, {int((exact.isfinite() & (exact > 0)).sum())} have one; peak memory "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB, of which a chunk "
        f"of data takes {CHUNK * options.width * 4 / 2**20:.0f}; pass sizes of bisection "
        f"{list(sizes.values())}"
    )
    print(f"\n{'flip, per image':22}{'ms':>9}{'class by class':>20}{'one product':>18}{'agree':>9}")
    for classes, width in HEADS:
        flips(classes, width, options.flip_images, options.repeats, options.seed)


def flips(classes: int, width: int, images: int, repeats: int, seed: int) -> None:
    """Print one line about the flips of a head with random rows."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=draw) * 0.05
    bias = torch.randn(classes, generator=draw) * 0.1
    direction = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    x = torch.rand(images, width, generator=draw)
    labels = torch.addmm(bias, x, weight.T).argmax(1)
    took, exact = least(lambda: critical_flip_strength(weight, bias, direction, x, labels), repeats)
    plain, one = least(lambda: class_by_class(weight, bias, direction, x[:1], int(labels[0])), 1)
    double = weight.double()
    product, _ = least(lambda: x.double() @ double.T, repeats)
    own = took / images
    print(
        f"{f'{classes} x {width}':22}{1e3 * own:9.2f}"
        f"{f'{1e3 * plain:.0f} ({plain / own:.0f}x)':>20}"
        f"{f'{1e3 * product / images:.2f} ({product / images / own:.2f}x)':>18}"
        f"{bool(torch.equal(exact[:1], one))!s:>9}"
    )


def class_by_class(
    weight: Tensor, bias: Tensor, direction: Tensor, x: Tensor, label: int
) -> Tensor:
    """Return the flip of images of one class as the least of one exact problem a class."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for other in range(len(weight)):
        if other != label:
            difference = weight[label].double() - weight[other].double()
            height = bias[label].double() - bias[other].double()
            best = torch.minimum(best, critical_strength(difference, height, direction, x))
    return best


def chunks(images: int, width: int, seed: int) -> Iterator[Tensor]:
    """Yield head inputs as after a ReLU and pooling, generated chunk by chunk."""
    draw = torch.Generator().manual_seed(seed + 1)
    for start in range(0, images, CHUNK):
        yield torch.rand(min(CHUNK, images - start), width, generator=draw)


def bisection(
    weight: Tensor, direction: Tensor, activations: Tensor, *, dtype: torch.dtype, size: int
) -> Tensor:
    """Return where 50 halvings of [0, limit] end, in place and in passes that stay in cache."""
    slopes = -direction.abs().to(dtype)
    limit = LIMIT / float(direction.abs().max())
    weight = weight.to(dtype)
    gate = torch.empty(size, len(weight), dtype=dtype)
    ends = []
    for x in torch.split(activations, size):
        terms, room = x * weight, gate[: len(x)]
        low, high = torch.zeros(len(x), dtype=dtype), torch.full((len(x),), limit, dtype=dtype)
        for _ in range(STEPS):
            middle = (low + high) / 2
            torch.outer(middle, slopes, out=room)
            below = room.add_(1).clamp_(min=0).mul_(terms).sum(1) + BIAS <= 0
            low, high = torch.where(below, low, middle), torch.where(below, middle, high)
        # The same marks as the exact solver's: 0 at once below, infinite if never found below.
        end = torch.where(high == limit, torch.inf, high)
        ends.append(torch.where(terms.sum(1) + BIAS <= 0, 0.0, end).double())
    return torch.cat(ends)


def best_size(weight: Tensor, direction: Tensor, x: Tensor, dtype: torch.dtype) -> int:
    """Return the pass size at which bisection is fastest here."""
    part = x[:1024]
    times = {
        size: least(partial(bisection, weight, direction, part, dtype=dtype, size=size), 3)[0]
        for size in (32, 64, 128, 256, 512)
    }
    return min(times, key=lambda size: times[size])


def least(call: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Return the least time of several calls and the last result."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return min(times), result


def worst_residual(weight: Tensor, direction: Tensor, x: Tensor, roots: Tensor) -> float:
    """Return the largest |z(root)| / |z(0)| over the roots found, in float64."""
    worst = 0.0
    kept = roots.isfinite() & (roots > 0)
    if not bool(kept.any()):
        return worst
    for part, root in zip(torch.split(x[kept], 512), torch.split(roots[kept], 512), strict=True):
        terms = part.double() * weight.double()
        gate = (1 - root[:, None] * direction.double().abs()).clamp(min=0)
        start = terms.sum(1) + BIAS
        worst = max(worst, float((((terms * gate).sum(1) + BIAS) / start).abs().max()))
    return worst


def differs(found: Tensor, exact: Tensor) -> Tensor:
    """Say which roots are others than the first: by more than 0.1 %, or finite against infinite."""
    both = found.isfinite() & exact.isfinite()
    return (found.isinf() != exact.isinf()) | (both & ((found - exact).abs() > 1e-3 * exact))


if __name__ == "__main__":
    main()
