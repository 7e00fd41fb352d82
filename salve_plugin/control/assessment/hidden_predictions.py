r"""What a dictionary's codes say that an edit of a hidden site does, beside what it does.

A dictionary says that latent l contributes z_lp v_l to the activation x_p at position p. To first
order, taking that away changes the logits by -Σ_p (∂logits/∂x_p) z_lp v_l, the gradient times the
change. That is a derivative along one direction: as a difference quotient in float64, it takes one
pass for all classes, and no layer has to be differentiable twice or forwards.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from salve_plugin.control.assessment.changes import Changes
from salve_plugin.control.assessment.image_sample import ImageSample
from salve_plugin.control.assessment.outcomes import Prediction
from salve_plugin.control.assessment.predictions import (
    other_latents,
    prediction_of,
    reported_sets,
    sign_of,
)
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.control.hooked_change import seen_by_edit
from salve_plugin.control.operators import LowRankUpdate
from salve_plugin.control.solving import two_sided
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, evaluating, reading
from salve_plugin.images import run
from salve_plugin.network import OnBaseMismatch
from salve_plugin.site import Site, replacing

STEP = 1e-6
"""Share of the change that is made. Rounding leaves some 1e-16 / STEP of the logits in the
quotient, curvature some STEP of the whole change."""
AGREES = 1e-3
"""How much of the derivative may change when the step is four times as long."""
ROWS = 4096
"""Positions that are encoded at once: all latents of each are computed, a few are kept."""


class HiddenPredictions:
    """What the codes of an edit's latents predict, and others' in their place, on a few images.

    A float64 copy of the network runs once for each set of latents: each of the edit's alone,
    `CONTROLS` others in the place of the first and, of several, all together and as many others.

    Attributes:
        sample: the images; to be filled before `records`.
    """

    def __init__(
        self, hooked: HookedModel, edit: Edit, dictionary: Dictionary, mismatch: OnBaseMismatch,
        target: int | None, seed: int,
    ) -> None:  # fmt: skip
        """Take parts that fit each other, see `of`, and draw the other latents."""
        self.sample = ImageSample(seed)
        self._hooked, self._edit, self._dictionary = hooked, edit, dictionary
        self._mismatch, self._target = mismatch, target
        reported = reported_sets(edit)
        own = reported[-1]
        # One draw for all that are looked at alone, so that the passes stay few.
        others = {
            len(one): other_latents(one, own, dictionary.n_latents, seed)
            for one in (reported[0], own)
        }
        self._groups = [[one, *others[len(one)]] for one in reported]

    @classmethod
    def of(
        cls,
        hooked: HookedModel,
        edit: Edit,
        changes: Changes,
        dictionary: Dictionary | None,
        *,
        on_base_mismatch: OnBaseMismatch,
        target: int | None,
        seed: int,
    ) -> "HiddenPredictions | None":
        """Return them without an image; None where codes of the dictionary predict nothing.

        They do where the edit changes more than the classifier, and scales or maps what latents of
        this very dictionary contribute at its site.
        """
        if dictionary is None or not edit.latents or changes.is_of_head:
            return None
        own = edit.dictionary_digest == dictionary.digest and edit.site == dictionary.site
        if not own or isinstance(edit.operator, LowRankUpdate):
            return None
        return cls(hooked, edit, dictionary, on_base_mismatch, target, seed)

    @torch.no_grad()
    def records(self) -> tuple[Prediction, ...]:
        """Return what each latent's codes predict, and if there are several, all together.

        Empty if the network does not run in float64, or rounds to less on the way: a difference
        quotient would be nothing but that rounding.
        """
        model, images, site = bare(self._hooked), self.sample.images, self._edit.site
        sets = sorted({one for group in self._groups for one in group})
        try:
            gradient = Gradient(model, self._hooked.site(site.name), self._dictionary, sets, images)
        except InputError:
            return ()
        along = {latents: gradient.along(self._edit, latents) for latents in sets}
        own = self._groups[-1][0]
        further = gradient.along(self._edit, own, 4 * STEP)
        # Asked in this way round, so that NaN counts as no agreement.
        if not bool((further - along[own]).norm() <= AGREES * along[own].norm()):
            return ()
        # In float64, too: the logits that all else is measured by are rounded batch by batch.
        edited = _double(self._edit.edited(model, on_base_mismatch=self._mismatch))
        change = _logits(edited, images) - gradient.logits
        records = []
        for group in self._groups:
            predicted = torch.stack([along[latents] for latents in group])
            line = None
            if self._target is not None:
                line = predicted[0, :, self._target], change[:, self._target]
            products = (predicted * change).sum((1, 2))
            squares = predicted.square().sum((1, 2)) * change.square().sum()
            records.append(prediction_of(group[0], products, squares, line))
        return tuple(records)


class Gradient:
    """The gradient of the logits at a site, times what latents contribute there.

    Attributes:
        logits: without any change.
    """

    logits: Float64[Tensor, "images classes"]

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        site: Site,
        dictionary: Dictionary,
        sets: Sequence[Sequence[int]],
        images: Tensor,
    ) -> None:
        """Run a float64 copy of the model, and keep the codes of some latents.

        Args:
            model: bare.
            site: of the dictionary.
            dictionary: whose latents they are.
            sets: of latents that will be asked for.
            images: in one pass.

        Raises:
            InputError: if the model does not run in float64.
        """
        self._model, self._site, self._images = _double(model), site, images
        with reading(self._model, [site]) as seen:
            self.logits = _logits(self._model, images)
        # Of some thousand latents these few codes are kept, for each position of each image.
        used = torch.tensor(sorted({latent for latents in sets for latent in latents}))
        self._place = {latent: place for place, latent in enumerate(used.tolist())}
        rows = site.recorded_rows(seen[site.name])
        atoms = dictionary.atoms.detach()
        kept = used.to(atoms.device)
        parts = torch.split(rows.to(atoms), ROWS)
        self._codes = torch.cat([dictionary.encode(some)[:, kept] for some in parts]).to(
            rows.device
        )
        # The device first: that of the dictionary may have no float64.
        self._codes, self._atoms = self._codes.to(rows), atoms[kept].to(rows.device).to(rows)

    @torch.no_grad()
    def along(
        self, edit: Edit, latents: Sequence[int], step: float = STEP
    ) -> Float64[Tensor, "images classes"]:
        """Return what taking the latents' contribution away changes, to first order.

        Args:
            edit: whose outputs see the change; one that enhances adds the contribution.
            latents: of one of the sets.
            step: share of the change that is made.
        """
        places = [self._place[latent] for latent in latents]
        change = sign_of(edit) * step * self._codes[:, places] @ self._atoms[places]
        change_at = replacing(self._site, lambda rows: rows + change.to(rows))
        with seen_by_edit(self._model, edit, self._site, change_at):
            return (_logits(self._model, self._images) - self.logits) / step


def _double(model: nn.Module) -> nn.Module:
    """Return a copy in float64, on the CPU where the device has none."""
    copy = deepcopy(model)
    if any(parameter.device.type == "mps" for parameter in copy.parameters()):
        copy = copy.cpu()
    return copy.double()


def _logits(model: nn.Module, images: Tensor) -> Float64[Tensor, "images classes"]:
    with evaluating(model):
        logits: Tensor = run(model, images, "images")
    return two_sided(logits.cpu().double())
