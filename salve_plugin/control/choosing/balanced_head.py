"""Heads refitted with every group of class and concept counting alike: biases, or all of it."""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor


def refitted_biases(
    logits: Float64[Tensor, "images classes"],
    labels: Int64[Tensor, " images"],
    weights: Float64[Tensor, " images"],
    rows: Int64[Tensor, " rows"],
) -> Float64[Tensor, " rows"]:
    """Return what to add to some biases so that the weighted cross-entropy is least.

    A convex problem in as many numbers as biases. Classes without images are left as they are:
    lowering them without end would be free.

    Args:
        logits: of the images, without the biases' change.
        labels: their classes.
        weights: of the images.
        rows: which biases may change.
    """
    seen = torch.bincount(labels, minlength=logits.shape[1])[rows] > 0
    free = rows[seen]
    share = weights / weights.sum()
    # Probabilities less these are the gradient of the cross-entropy with respect to the logits.
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).double()

    def loss(gain: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved = logits.clone()
        moved[:, free] += torch.from_numpy(gain)
        logs = moved.log_softmax(1)
        # A trace of ridge: adding one number to all biases changes nothing, so take the least.
        value = -(share * (logs * own).sum(1)).sum() + 1e-6 * float(gain @ gain)
        slope = (share[:, None] * (logs.exp() - own)).sum(0)[free].numpy() + 2e-6 * gain
        return float(value), slope

    fitted = minimize(loss, np.zeros(len(free)), jac=True, method="L-BFGS-B")
    result = torch.zeros(len(rows), dtype=torch.float64)
    result[seen] = torch.from_numpy(np.asarray(fitted.x, dtype=np.float64))
    return result


def nuisance_head(
    x: Float64[Tensor, "images width"],
    labels: Int64[Tensor, " images"],
    weights: Float64[Tensor, " images"],
    effects: Float64[Tensor, "width effects"],
    weight: float,
    *,
    shrinkage: float = 0.02,
) -> tuple[Float64[Tensor, "classes width"], Float64[Tensor, " classes"]]:
    r"""Return the linear discriminant for which what a concept adds is noise.

    $W = M (S_w + \lambda G)^{-1}$, $b_y = -\frac12 m_y^T (S_w + \lambda G)^{-1} m_y$: Fisher's
    discriminant with the within-class covariance $S_w$ enlarged by the covariance G of the
    concept's effects, so that decisions avoid the directions along which the concept acts. All in
    closed form, groups of class and concept counting alike.

    Args:
        x: head inputs.
        labels: of the images; every class from 0 to the largest has some.
        weights: of the images, equal in sum for every group.
        effects: see `Concept.effects`.
        weight: $\lambda$; 0 is the balanced discriminant.
        shrinkage: of the within-class covariance towards a multiple of the identity.
    """
    classes = int(labels.max()) + 1
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, weights)
    means = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    means.index_add_(0, labels, x * weights[:, None])
    means /= total[:, None]
    # About each class's own mean: what tells the classes apart must not count as noise.
    centred = x - means[labels]
    within = (centred * weights[:, None]).T @ centred / weights.sum()
    width = len(within)
    ridge = shrinkage * within.diagonal().sum() / width
    noise = (1 - shrinkage) * within + ridge * torch.eye(width, dtype=torch.float64)
    noise = noise + weight * effects @ effects.T
    # About the mean of the classes: adding the same row to all changes no decision, and leaves the
    # numbers as small as they can be.
    centre = means.mean(0)
    rows = torch.linalg.solve(noise, (means - centre).T).T
    # (m - c)ᵀN(m + c) = mᵀNm - cᵀNc, and the second term is one number for all classes.
    bias = -0.5 * (rows * (means + centre)).sum(1)
    return rows, bias
