"""What the edit bench computes with: head inputs, the head, and what only Python can do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.decisions import Decisions
from salve_plugin.control.edit import Edit
from salve_plugin.control.knots import LIMIT
from salve_plugin.control.making import latent_gate
from salve_plugin.control.operators import Gate
from salve_plugin.control.provenance import Provenance
from salve_plugin.control.rivals import strengths_by_closure
from salve_plugin.control.steps import Steps, prediction_steps
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import HEAD_INPUT
from salve_plugin.validate.evidence.head import over_classes, rows_of

LIVE = 5 * 10**7
"""Products (images x width x classes) that the page computes while a slider is dragged."""
CLOSED = 0.9
"""Share of the columns that are closed at the end of the slider."""
KEPT = 32
"""Highest logits of an image that the page knows: the best class that an edit leaves alone is among
them as long as fewer rows are edited. All logits would be most of what the bench loads."""


@dataclass(frozen=True, eq=False)
class Bench:
    """Some recorded images and the head that reads them.

    Attributes:
        images: which of the recording, ascending, (images,).
        x: head inputs, (images, width), float32.
        labels: (images,).
        decisions: the head in float64; of a single logit two mirrored rows.
        edit: a gate of strength 0, which all others differ from in operator, rows and provenance.
        atoms: of the dictionary, (latents, width).
    """

    images: Int64[Tensor, " images"]
    x: Float[Tensor, "images width"]
    labels: Int64[Tensor, " images"]
    decisions: Decisions
    edit: Edit
    atoms: Float[Tensor, "latents width"]

    @classmethod
    def of(
        cls, hooked: HookedModel, dictionary: Dictionary, acts: Activations, n_images: int
    ) -> "Bench":
        """Read up to so many images, of every class the same share, evenly spaced in it.

        Raises:
            InputError: if logits are no known function of what was recorded.
        """
        if acts.site.name != HEAD_INPUT or acts.n_rows != acts.n_images:
            raise InputError(
                f"the edit bench recomputes logits from the head's input '{HEAD_INPUT}', one row "
                f"an image; this recording is of '{acts.site.name}'"
            )
        edit = latent_gate(hooked, dictionary, "suppress", 0, 0.0, None, None)
        decisions = Decisions.of(hooked, edit.site, 0.0)
        if not decisions.layers.is_plain:
            raise InputError(
                "the edit bench recomputes logits from the classifier's weight alone, and edits "
                "that are on it are computed from what it was without them; revert them first, or "
                "take a model that was saved with them"
            )
        labels = acts.image_labels().long()
        chosen = over_classes(labels, n_images)
        atoms = dictionary.atoms.detach().cpu()
        return cls(chosen, rows_of(acts, chosen), labels[chosen], decisions, edit, atoms)

    @property
    def weight(self) -> Float[Tensor, "classes width"]:
        """The head in float32, as it is evaluated."""
        return self.decisions.weight.float()

    @property
    def bias(self) -> Float[Tensor, " classes"]:
        """Of the head, in float32."""
        return self.decisions.bias.float()

    def logits(self) -> Float[Tensor, "images classes"]:
        """Return the logits of the unedited head, as `evaluate_head` computes them."""
        return torch.addmm(self.bias, self.x, self.weight.T)

    def top(self) -> tuple[Int64[Tensor, "images kept"], Float[Tensor, "images kept"]]:
        """Return each image's highest logits and their classes; of equal ones the lower class."""
        # Stable, which alone keeps the lower class first where logits are equal.
        ordered = self.logits().sort(dim=1, descending=True, stable=True)
        return ordered.indices[:, :KEPT], ordered.values[:, :KEPT]

    @property
    def is_live(self) -> bool:
        """Whether a page can recompute all logits while a slider is dragged."""
        return len(self.x) * self.weight.numel() <= LIVE

    def limit(self, latent: int) -> float:
        """Return the largest strength that is of interest: most columns are closed there."""
        reach = self.atoms[latent].double().abs()
        return min(strengths_by_closure(reach, (CLOSED,))[0], LIMIT / float(reach.max()))

    def alpha_crit(
        self, label: int, latent: int, rows: tuple[int, ...] | None
    ) -> Float64[Tensor, " images"]:
        """Return where the decisions for a class's images break; see `salve.alpha_crit`."""
        # Of the edit that was built once only operator, rows and source differ: to build one anew
        # for each class would hash the base's tensors again.
        gate = Gate(self.atoms[latent, None], 0.0)
        edit = replace(
            self.edit, operator=gate, rows=rows,
            provenance=Provenance("latents", (latent,), self.edit.provenance.dictionary),
        )  # fmt: skip
        own = self.labels == label
        x, labels = self.x[own], self.labels[own]
        values, _ = self.decisions.flips(edit, x, self.decisions.logits(x), labels)
        return values

    def flows(self, label: int, latent: int, strength: float) -> Int64[Tensor, " classes"]:
        """Return where a class's images go when a latent is suppressed in the class's own row."""
        x = self.x[self.labels == label]
        logits = self.decisions.logits(x)
        factors = Gate(self.atoms[latent, None], strength).factors.double().flatten()
        row = self.decisions.weight[label] * factors
        logits[:, label] = x.double() @ row + self.decisions.bias[label]
        return logits.argmax(1).bincount(minlength=logits.shape[1])

    def steps(self, latent: int) -> Steps:
        """Return the predictions at every strength of the latent's suppression on all rows."""
        head = self.decisions
        reach = self.atoms[latent].double().abs()
        return prediction_steps(head.weight, head.bias, reach, self.x, self.limit(latent))


def shared_fields(edit: Edit) -> Mapping[str, str]:
    """Return the fields that the recipes of all edits like this one share, each as JSON."""
    # As text: a page's numbers would turn 1.0 into 1, and the edit into another one.
    fields = edit.to_json()
    shared = ("base", "exactness", "site", "targets")
    return {name: json.dumps(fields[name], sort_keys=True) for name in shared}


def dominant_latents(dominant: Sequence[int | None], most: int) -> list[int]:
    """Return the classes' dominant latents, each once, those of more classes first."""
    counts: dict[int, int] = {}
    for latent in dominant:
        if latent is not None:
            counts[latent] = counts.get(latent, 0) + 1
    return sorted(counts, key=lambda latent: (-counts[latent], latent))[:most]
