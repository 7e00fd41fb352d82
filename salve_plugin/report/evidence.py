"""What speaks for each latent, packed so that the page of a latent reads its own numbers."""

from collections.abc import Mapping
from typing import Any

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import InputError
from salve_plugin.report.scripts import array
from salve_plugin.validate.evidence.intervention import SCALES
from salve_plugin.validate.evidence.latent_evidence import LatentEvidence
from salve_plugin.validate.quality import Quality

LABELS = ("label", "partner")
NUMBERS = (
    "auc", "auc_null", "auc_p_all", "precision", "precision_null", "chance", "phi", "phi_null",
    "phi_p", "kl", "effect", "effect_p", "explained", "explained_null", "curve",
)  # fmt: skip
"""Fields of the evidence that the page shows, each beside its null or p."""


def check(evidence: LatentEvidence, dictionary: Dictionary, n_classes: int) -> None:
    """Refuse evidence of another dictionary or of classes that the model does not have.

    Raises:
        InputError: with what was found.
    """
    check_own("evidence", evidence, dictionary)
    if int(evidence.label.max()) >= n_classes:
        raise InputError(
            f"the evidence is of {int(evidence.label.max()) + 1} classes or more, the model has "
            f"{n_classes}: pass salve.evidence(hooked, dictionary, acts) of this recording"
        )


def check_own(name: str, measured: LatentEvidence | Quality, dictionary: Dictionary) -> None:
    """Refuse what was measured of another dictionary.

    Raises:
        InputError: with both digests.
    """
    if not isinstance(measured, {"evidence": LatentEvidence, "quality": Quality}[name]):
        raise InputError(f"{name} is {measured!r:.80}; pass what salve.{name}(...) returns")
    if measured.dictionary_digest != dictionary.digest:
        raise InputError(
            f"the {name} is of dictionary {measured.dictionary_digest[:12]}, the one given is "
            f"{dictionary.digest[:12]}: pass salve.{name}(...) of this one"
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
