"""How much of the error is the encoder's fault: codes by pursuit with the same atoms and L0."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from salve_plugin.errors import InputError
from salve_plugin.validate.reconstruction import check_finite, fvu

SparseCoder = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""From rows, atoms, the number of atoms for each row and whether codes are signed, to codes."""


def gradient_pursuit(
    x: Float[Tensor, "rows width"],
    atoms: Float[Tensor, "latents features"],
    k: Int[Tensor, " counts"],
    signed: bool,
) -> Float64[Tensor, "rows latents"]:
    """Return codes of at most `k` atoms for each row, by gradient pursuit.

    Each round adds the atom that correlates most with the residual r = x − z V, then moves all
    chosen codes along the gradient g by the exact line search ⟨g V, r⟩ / ‖g V‖²; codes that must
    not be negative are cut at zero (Blumensath & Davies 2008; as Engels et al. 2024 apply it to
    frozen dictionaries). A round that would make the residual longer changes nothing. With
    orthonormal atoms the result is the top k of V x. Computed in float64.

    Args:
        x: rows, without the decoder's offset.
        atoms: of unit norm.
        k: how many atoms each row may use.
        signed: whether codes may be negative.

    Raises:
        InputError: if the shapes do not fit, a value is NaN or infinite, or a `k` is negative or
            above the number of atoms.
    """
    x, atoms = _checked(x, atoms, k)
    code = x.new_zeros(len(x), len(atoms))
    chosen = torch.zeros_like(code, dtype=torch.bool)
    residual = x
    for turn in range(int(k.max()) if len(k) else 0):
        correlation = residual @ atoms.T
        _choose(chosen, correlation, k > turn, signed)
        # Minus the gradient of half the squared residual in the codes is the correlation.
        gradient = torch.where(chosen, correlation, 0.0)
        moved = gradient @ atoms
        # Exact along the gradient; a residual that no chosen atom meets has no step, not NaN.
        step = (moved * residual).sum(1) / moved.square().sum(1).clamp(min=1e-300)
        tried = code + step[:, None] * gradient
        tried = tried if signed else tried.clamp(min=0)
        left = x - tried @ atoms
        # Cutting negative codes at zero can undo more than the step gained.
        better = (k > turn) & (left.square().sum(1) <= residual.square().sum(1))
        code = torch.where(better[:, None], tried, code)
        residual = torch.where(better[:, None], left, residual)
    return code


def orthogonal_pursuit(
    x: Float[Tensor, "rows width"],
    atoms: Float[Tensor, "latents features"],
    k: Int[Tensor, " counts"],
    signed: bool,
) -> Float64[Tensor, "rows latents"]:
    """Return codes of at most `k` atoms for each row, by orthogonal matching pursuit.

    Each round adds the atom that correlates most with the residual and refits all chosen codes by
    least squares (Pati et al. 1993). Tighter and slower than `gradient_pursuit`; unsigned, only
    atoms of positive correlation are added, but the refit may turn a code negative.

    Computed in float64.

    Args:
        x: rows, without the decoder's offset.
        atoms: of unit norm.
        k: how many atoms each row may use.
        signed: whether atoms of negative correlation may be added.

    Raises:
        InputError: as `gradient_pursuit`.
    """
    x, atoms = _checked(x, atoms, k)
    code = x.new_zeros(len(x), len(atoms))
    chosen = torch.zeros_like(code, dtype=torch.bool)
    for turn in range(int(k.max()) if len(k) else 0):
        _choose(chosen, (x - code @ atoms) @ atoms.T, k > turn, signed)
        code = _least_squares(x, atoms, chosen)
    return code


def amortization_gap(
    x: Float[Tensor, "rows width"],
    codes: Float[Tensor, "coded codes"],
    atoms: Float[Tensor, "latents width"],
    offset: Float[Tensor, " width"],
    *,
    tolerance: float = 0.0,
    pursuit: SparseCoder = gradient_pursuit,
) -> float:
    """Return FVU(encoder) − FVU(pursuit) with the same atoms and the same L0 in every row.

    It is the error that a better encoder would save, or rather a lower bound of it, as pursuit is
    greedy too; negative where the encoder beats it. Codes may be negative where the encoder's are.

    Args:
        x: activations.
        codes: the encoder's.
        atoms: V, of unit norm.
        offset: b_d; the reconstruction is z V + b_d.
        tolerance: a latent is active if |z| exceeds it.
        pursuit: `gradient_pursuit` or `orthogonal_pursuit`.

    Raises:
        InputError: if shapes do not fit, a value is NaN or infinite, or `x` has no variance.
    """
    check_finite(codes, "codes")
    if codes.shape != (len(x), len(atoms)):
        raise InputError(
            f"codes of shape {tuple(codes.shape)} do not fit {len(x)} rows and {len(atoms)} atoms"
        )
    centred = x.double() - offset.double()
    k = (codes.abs() > tolerance).sum(1)
    pursued = pursuit(centred, atoms, k, bool((codes < 0).any()))
    by_encoder, by_pursuit = (centred - z.double() @ atoms.double() for z in (codes, pursued))
    return fvu(x, by_encoder) - fvu(x, by_pursuit)


def _checked(x: Tensor, atoms: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    check_finite(x, "activations")
    check_finite(atoms, "atoms")
    if x.ndim != 2 or atoms.ndim != 2 or x.shape[1] != atoms.shape[1] or k.shape != x.shape[:1]:
        raise InputError(
            f"rows {tuple(x.shape)}, atoms {tuple(atoms.shape)} and k {tuple(k.shape)} do not fit: "
            "expected (rows, width), (latents, width) and (rows,)"
        )
    if len(k) and not 0 <= int(k.min()) <= int(k.max()) <= len(atoms):
        raise InputError(
            f"k from {int(k.min())} to {int(k.max())} must lie between 0 and the number of atoms, "
            f"{len(atoms)}"
        )
    return x.double(), atoms.double()


def _choose(
    chosen: Bool[Tensor, "rows latents"],
    correlation: Float64[Tensor, "rows latents"],
    wanting: Bool[Tensor, " rows"],
    signed: bool,
) -> None:
    """Add to each row that wants one the atom not yet chosen that correlates most, in place."""
    gain = (correlation.abs() if signed else correlation).masked_fill(chosen, -torch.inf)
    best, atom = gain.max(1)
    # Where nothing is left that an atom meets, none is added: the best of zeros is but the first.
    rows = (wanting & (best > 0)).nonzero().flatten()
    chosen[rows, atom[rows]] = True


def _least_squares(x: Tensor, atoms: Tensor, chosen: Tensor) -> Tensor:
    """Return the codes at the chosen places that leave the shortest residual."""
    size = int(chosen.sum(1).max())
    # Chosen places first; rows with fewer are filled up with atoms set to zero.
    used, places = chosen.int().topk(size, dim=1)
    parts = atoms[places] * used[..., None]
    # The ones on the diagonal make the filled-up rows' equations 0 = 1 z; the last term decides
    # between atoms that are chosen and linearly dependent.
    gram = parts @ parts.mT + torch.diag_embed(1 - used.double() + 1e-12)
    fitted = torch.linalg.solve(gram, parts @ x[..., None])[..., 0]
    return torch.zeros_like(chosen, dtype=x.dtype).scatter(1, places, fitted * used)
