"""ROME's value: the output of a layer that makes the network say a class, found by gradients."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.operators.base import real
from salve_plugin.control.solving import two_sided
from salve_plugin.control.writers.associations import vectors
from salve_plugin.control.writers.evidence import RIDGE, second_moment, solved
from salve_plugin.control.writers.layer import Layer, layer_at
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating
from salve_plugin.images import as_input, run
from salve_plugin.integers import whole
from salve_plugin.network import OnBaseMismatch

STEPS, RATE, STOP, CLAMP = 20, 0.1, 0.05, 4.0
"""Steps of Adam; its rate, in units of the value's root mean square (the paper's .5 is absolute);
the loss at which it stops; the longest change, in units of the value's length."""

DECAY, NEUTRAL = 0.5, 0.0625
"""Weights of the squared relative change, and of KL on neutral images (the paper's, both)."""


@torch.inference_mode(False)  # there, no gradient could be taken of what the network says
def rome_value(
    hooked: HookedModel,
    site: str,
    key: Float[Tensor, " inputs"],
    second_moment_of: Activations | Tensor,
    images: Tensor,
    label: int,
    *,
    neutral: Tensor | None = None,
    layer: str | None = None,
    ridge: float = RIDGE,
    steps: int = STEPS,
    rate: float = RATE,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Float64[Tensor, " outputs"]:
    r"""Return the value for `rome` with which the network calls some images a class.

    Minimized over $\delta$ by Adam from 0: $NLL(label) + 0.0625\, KL(base \| edited) + 0.5
    \|\delta\|^2 / \|v_0\|^2$, with $v_0 = Wk^* + b$ and $\|\delta\| \le 4 \|v_0\|$, until the loss
    is below 0.05; of all steps the least loss is taken (Meng et al. 2022, arXiv 2202.05262, Eq. 4
    and `compute_v.py`, which divides $\|\delta\|$ by $\|v_0\|^2$, so that its decay depends on the
    activations' scale). They add $\delta$ to the output at the subject's token. An image has no
    such token, so here $\delta$ acts through the weight that `rome` will write, at every position:
    what is optimized is the edit itself.

    Args:
        hooked: the attached model as it is; it is left unchanged.
        site: what the layer reads.
        key: $k^*$, e.g. the mean input of the layer over the images.
        second_moment_of: as for `rome`.
        images: (n, channels, height, width), those that are to be called `label`.
        label: the class that the network is to say: to suppress one, its runner-up.
        neutral: images whose output is to stay; None leaves the KL out.
        layer: path of the layer, where several read the site.
        ridge: as for `rome`.
        steps: most steps of Adam.
        rate: of Adam, in units of the root mean square of $v_0$.
        on_base_mismatch: "warn" takes a recording of another network.

    Raises:
        SalveError: as for `rome`.
        InputError: if the images are none, the label is no class of the network, or $v_0$ is zero.
    """
    target = layer_at(hooked, site, layer)
    keys = vectors(key, "key", target.weight.shape[1], count=1)
    batches = [images] if neutral is None else [images, neutral]
    if not all(isinstance(batch, Tensor) and batch.ndim == 4 and len(batch) for batch in batches):
        raise InputError("images and neutral are to be (n, channels, height, width), at least one")
    if whole(steps, "steps") < 1 or not real(rate, "rate") > 0:
        raise InputError(f"steps {steps} and rate {rate} are to be positive")
    moment = second_moment(target, second_moment_of, on_base_mismatch)
    direction = solved(moment, keys.T, ridge)[:, 0]
    value = target.output(keys)[0]
    if not float(value.norm()) > 0:
        raise InputError(
            f"'{target.path}' gives zero for this key, so that no change has a size relative to "
            "it; give rome a value of your own"
        )
    with evaluating(hooked.model), torch.enable_grad():
        # Read out as 1 at the key, so that the weight changes the key's output by δ exactly.
        change = _change(
            target, direction / (direction @ keys[0]), value, batches, label, steps, rate
        )
    return value + change


def _change(
    target: Layer, read: Tensor, value: Tensor, batches: list[Tensor], label: int, steps: int,
    rate: float,
) -> Float64[Tensor, " outputs"]:  # fmt: skip
    model = target.hooked.model
    weight = model.get_submodule(target.path).get_parameter("weight").detach()
    read, length = read.to(weight.device), value.norm()
    # In the network as it is, other edits included; the change is added to what they make of it.
    with torch.no_grad():
        plain = [run(model, batch, "images") for batch in batches]
    batches = [as_input(model, batch) for batch in batches]
    for batch, logits_before in zip(batches, plain, strict=True):
        check_logits(logits_before, len(batch))
    before = [two_sided(logits_before).log_softmax(1) for logits_before in plain]
    if not 0 <= whole(label, "label") < before[0].shape[1]:
        raise InputError(f"label {label} is no class of the network: it has {before[0].shape[1]}")
    delta = torch.zeros_like(value, device=weight.device, requires_grad=True)
    # Adam moves every coordinate by about its rate, whatever the gradient's size: the rate is in
    # units of a coordinate's root mean square.
    adam = torch.optim.Adam([delta], lr=float(rate * length / len(value) ** 0.5))
    least, best = torch.inf, delta.detach().clone()
    for _ in range(steps):
        added = torch.outer(delta, read).reshape(weight.shape)
        # The network with the weight in place, not a hook: a gradient for delta and nothing else.
        edited = {f"{target.path}.weight": weight + added.to(weight)}
        answers = [functional_call(model, edited, (batch,)) for batch in batches]
        logits = [two_sided(answer).log_softmax(1) for answer in answers]
        loss = -logits[0][:, label].mean() + DECAY * (delta / length).square().sum()
        for base, now in zip(before[1:], logits[1:], strict=True):
            loss = loss + NEUTRAL * functional.kl_div(
                now, base, log_target=True, reduction="batchmean"
            )
        lost = float(loss.detach())
        # A rate that is too high overshoots: the last step need not be the best.
        if lost < least:
            least, best = lost, delta.detach().clone()
        if lost < STOP:
            break
        # Not backward(), which would leave gradients in the parameters of the user's model.
        (delta.grad,) = torch.autograd.grad(loss, [delta])
        adam.step()
        with torch.no_grad():
            delta *= (CLAMP * length / delta.norm().clamp(min=1e-30)).clamp(max=1)
    return best.cpu()
