"""What speaks for each latent, packed so that the page of a latent reads its own numbers."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.errors import InputError
from salve_plugin.report.scripts import array
from salve_plugin.validate.evidence.intervention import SCALES
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence

LABELS = ("label", "partner")
NUMBERS = (
    "auc", "auc_null", "auc_p_all", "precision", "precision_null", "chance", "phi", "phi_null",
    "phi_p", "kl", "effect", "effect_p", "explained", "explained_null", "curve",
)  # fmt: skip
"""Fields of the evidence that the page shows, each beside its null or p."""


def check(evidence: LatentEvidence, n_latents: int, n_classes: int) -> None:
    """Refuse evidence of another dictionary, as far as its shapes tell.

    Raises:
        InputError: with the two sizes.
    """
    if len(evidence.label) != n_latents or int(evidence.label.max()) >= n_classes:
        raise InputError(
            f"the evidence is of {len(evidence.label)} latents and {int(evidence.label.max()) + 1} "
            f"classes or more; the dictionary has {n_latents} latents, the model {n_classes} "
            "classes: pass salve.evidence(hooked, dictionary, acts) of this dictionary"
        )


def shared(evidence: LatentEvidence) -> Mapping[str, Any]:
    """Return what is said of all latents together, and what the list of latents shows of each."""
    return {
        "k": evidence.k, "images": evidence.n_images, "permutations": evidence.permutations,
        "scales": list(SCALES),
        "auc": array(evidence.auc, "f32"), "auc_p_all": array(evidence.auc_p_all, "f32"),
    }  # fmt: skip


def part(evidence: LatentEvidence, latents: slice) -> Mapping[str, Any]:
    """Return the numbers of neighbouring latents by field, NaN what was not measured."""
    fields = dict.fromkeys(LABELS, "i32") | dict.fromkeys(NUMBERS, "f32")
    return {name: array(getattr(evidence, name)[latents], dtype) for name, dtype in fields.items()}
