"""Interventions on latents that the classifier does not read itself: the network runs on."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from salve_plugin.control.assessment.predictions import other_latents
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.faces.progress import Update
from salve_plugin.hooks import HookedModel, evaluating, reading, tapped
from salve_plugin.images import run
from salve_plugin.site import Site, replacing
from salve_plugin.validate.evidence.class_profile import NO_CLASS
from salve_plugin.validate.evidence.head import evenly
from salve_plugin.validate.evidence.intervention import SCALES, Intervention, intervened
from salve_plugin.validate.evidence.kept import Kept, concatenated
from salve_plugin.validate.evidence.recorded_images import BATCH, RecordedImages

IMAGES = 8
"""Images of a class on which its latents are intervened on; the classifier alone is tried on more,
for there nothing has to run."""
_LATENTS = 16
"""Latents that are kept together."""
_CLOSE = 0.02
"""How near a control's divergence is to the latent's: each step runs the network 19 times."""
_UNKNOWN = Intervention((torch.nan,) * len(SCALES), torch.nan, torch.nan, torch.nan)
_LEAST = 1e-9
"""KL in nats that a float32 network may have from itself in another batch."""


@torch.no_grad()
def hidden_effects(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: RecordedImages,
    labels: Int64[Tensor, " images"],
    told: Int64[Tensor, " latents"],
    kept: Kept,
    *,
    seed: int,
    update: Update,
) -> dict[str, Tensor]:
    """Scale each latent's contribution at its site, at every position, and run the rest.

    What the dictionary does not explain stays. Controls are other latents' atoms in its place, as
    strong at each position, at an equal KL; see `intervened`.

    Args:
        hooked: the attached model.
        dictionary: of one of its sites.
        images: that were recorded.
        labels: their classes.
        told: the class that each latent tells; -1 for none.
        kept: of these numbers.
        seed: of the choice of other latents.
        update: gets how many latents are done.

    Returns:
        `curve` (latents, scales), `kl`, `effect` and `effect_p` (latents,); NaN without a class.
    """

    def measured(own: Int64[Tensor, " some"]) -> dict[str, Tensor]:
        results = []
        for latent, label in zip(own.tolist(), told[own].tolist(), strict=True):
            of_class = (labels == label).nonzero()[:, 0]
            chosen = of_class[evenly(len(of_class), IMAGES)].tolist()
            results.append(
                _UNKNOWN if label == NO_CLASS
                else _one(hooked, dictionary, images.read(chosen), latent, label, seed)
            )  # fmt: skip
        return {
            name: torch.tensor([getattr(result, name) for result in results], dtype=torch.float64)
            for name in ("curve", "kl", "effect", "effect_p")
        }

    return concatenated(kept.blocks(len(told), _LATENTS, measured, update))


def _one(
    hooked: HookedModel, dictionary: Dictionary, images: Tensor, latent: int, label: int, seed: int
) -> Intervention:
    spliced = _Spliced(hooked, dictionary, images, latent)
    drawn = other_latents([latent], [latent], dictionary.n_latents, seed)
    atoms = dictionary.atoms[[latent, *(other for (other,) in drawn)]].detach()
    return intervened(
        spliced.logits(torch.zeros(1), atoms[:1])[0],
        lambda amounts: spliced.logits(amounts, atoms[:1].expand(len(amounts), -1)),
        lambda amounts: spliced.logits(amounts, atoms[1:]),
        len(drawn),
        label,
        close=_CLOSE,
        least=_LEAST,
    )


class _Spliced:
    """A model in which multiples of a latent's codes times an atom are taken from the site."""

    def __init__(
        self, hooked: HookedModel, dictionary: Dictionary, images: Tensor, latent: int
    ) -> None:
        self._hooked, self._images = hooked, images
        self._site: Site = hooked.site(dictionary.site.name)
        with evaluating(hooked.model), reading(hooked.model, [self._site]) as activations:
            run(hooked.model, images, "images")
        rows = self._site.recorded_rows(activations[self._site.name]).to(dictionary.atoms)
        # Once, of the model as it is: a scale s then leaves s times what these codes contribute.
        self._codes = dictionary.encode(rows)[:, latent].view(len(images), -1)

    def logits(
        self, amounts: Float[Tensor, " some"], atoms: Float[Tensor, "some width"]
    ) -> Float[Tensor, "some images classes"]:
        """Return the logits without amount x code x atom at every position, for each amount."""
        parts = []
        for some in torch.split(torch.arange(len(amounts)), max(1, BATCH // len(self._images))):
            # In the order of the rows below: amount by amount, image by image, position by
            # position.
            factors = amounts[some].to(atoms)[:, None, None] * self._codes
            removed = factors.flatten()[:, None] * atoms[some].repeat_interleave(
                self._codes.numel(), 0
            )
            inputs = self._images.repeat(len(some), *([1] * (self._images.ndim - 1)))

            def without(rows: Tensor, removed: Tensor = removed) -> Tensor:
                return rows - removed.to(rows)

            hooked, site = self._hooked, self._site
            with evaluating(hooked.model), tapped(hooked.model, site, replacing(site, without)):
                logits: Tensor = run(hooked.model, inputs, "images")
            parts.append(logits.cpu().double().view(len(some), len(self._images), -1))
        return torch.cat(parts)
