"""From the rows that learners see back to raw activations, exactly."""

from jaxtyping import Float
from torch import Tensor

from salve_plugin.discover.learners.base import Learner, Tensors


def folded(rule: Learner, tensors: Tensors, mean: Float[Tensor, " width"], scale: float) -> Tensors:
    """Return the tensors for raw rows x = s x' + m, of a dictionary for scaled rows x'.

    Atoms and encoder stay as they are, so that atoms keep unit norm and codes become s times
    larger: s (E x' + b) is E x + (s b - E m), and s (z V + b_d) + m is (s z) V + (s b_d + m).
    Each tensor of the learner's own is multiplied by its power of s. Computed in float64.
    """
    weight = tensors["encoder_weight"]
    mean = mean.double()
    # A mean that is large beside the scale would leave these biases few digits in float32, if every
    # term and sum were rounded; so only the result is.
    common = {
        "atoms": tensors["atoms"].double(),
        "encoder_weight": weight.double(),
        "encoder_bias": scale * tensors["encoder_bias"].double() - weight.double() @ mean,
        "decoder_bias": scale * tensors["decoder_bias"].double() + mean,
    }
    extra = {name: tensors[name].double() * scale**power for name, power in rule.extra.items()}
    return {name: value.to(tensors[name].dtype) for name, value in (common | extra).items()}
