"""Which number type training computes dense products in; a unit that keeps squares in range."""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.errors import InputError

PRECISIONS = ("float32", "bfloat16")


def autocasts(precision: str) -> bool:
    """Return whether products are computed in bfloat16.

    Raises:
        InputError: if there is no such precision.

    Warns:
        UserWarning: if this processor has no bfloat16 instructions: it is then many times slower
            than float32, not faster.
    """
    if precision not in PRECISIONS:
        raise InputError(f"no precision {precision!r}; choose one of {list(PRECISIONS)}")
    if precision == "float32":
        return False
    if not has_bfloat16():
        warnings.warn(
            "this processor has no bfloat16 instructions, so that training in bfloat16 is slower "
            'than in float32; leave out precision="bfloat16"',
            UserWarning,
            stacklevel=3,
        )
    return True


def has_bfloat16() -> bool:
    """Say whether the processor multiplies bfloat16 matrices itself (AVX512-BF16 or AMX)."""
    # Both are private to torch: a version without them counts as a processor without the
    # instructions, which costs speed but never a result.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def largest(x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows 1"]:
    """Return each row's largest absolute value, to divide the row by; 1 for a row of zeros.

    No gradient flows through it: it is a unit.
    """
    size = x.detach().abs().amax(-1, keepdim=True)
    return torch.where(size > 0, size, 1.0)
