"""A classifier and the inputs recorded for it, on which every candidate is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.edit import Edit
from salve_plugin.control.edited import entries_of
from salve_plugin.control.evaluate import accuracies
from salve_plugin.control.formula import Entry, Ledger, composed
from salve_plugin.control.ledger import ledger_of, pristine_of
from salve_plugin.control.operators import Gate, scaled_rows
from salve_plugin.control.rows import Rows, index_of, take, union_of
from salve_plugin.control.slots import slots_of
from salve_plugin.control.solving import check_labels
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import check_of_model
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import whole
from salve_plugin.site import Site


@dataclass(frozen=True, eq=False)
class JudgedHead:
    """The classifier of a model as it is, with recorded inputs of labelled images in memory.

    Attributes:
        hooked: the model.
        site: what the classifier reads.
        weight: (classes, width), float32.
        bias: (classes,), float32.
        x: inputs (images, width), float32.
        labels: (images,).
        logits: of the model as it is, (images, classes).
    """

    hooked: HookedModel
    site: Site
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]
    x: Float[Tensor, "images width"]
    labels: Int64[Tensor, " images"]
    logits: Float[Tensor, "images classes"]

    @classmethod
    def of(cls, hooked: HookedModel, recordings: Sequence[Activations]) -> "JudgedHead":
        """Read recordings of the classifier's input.

        Raises:
            InputError: if it is of another site, or its labels are not the classifier's: of another
                number of classes, as those of an attribute are.
        """
        site = hooked.site(recordings[0].site.name)
        if not set(site.readers) & set(hooked.heads):
            raise InputError(
                f"the recording is of '{site.name}', and an edit is chosen where the classifier "
                f"reads, at {list(hooked.head_sites)}. Make a hidden edit yourself: "
                "salve.erase(hooked, concept)"
            )
        weight, bias = (part.detach().float().cpu() for part in hooked.unembed(site))
        if len(bias) == 1:
            raise InputError(
                "the classifier has one logit, and an edit is chosen by whose logit is largest. "
                "Make it yourself: salve.suppress(hooked, dictionary, latent=...), with the latent "
                "from salve.profile(dictionary, acts) and the strength from "
                "salve.alpha_crit(hooked, edit, acts, threshold=...)"
            )
        for acts in recordings:
            check_of_model(acts.classes, len(bias))
            if acts.n_rows != acts.n_images:
                raise InputError(
                    f"the recording of '{acts.site.name}' has {acts.n_rows} rows for "
                    f"{acts.n_images} images; an edit is chosen on the classifier's input, one row "
                    "an image"
                )
        # All in memory: each of some hundred candidates is judged on every image.
        labels = torch.cat([acts.labels().long() for acts in recordings])
        check_labels(labels, len(bias))
        x = torch.cat([acts.tensor() for acts in recordings])
        logits = torch.addmm(bias, x, weight.T)
        if not bool(logits.isfinite().all()):
            raise InputError("logits are NaN or infinite; check the recording and the weights")
        return cls(hooked, site, weight, bias, x, labels, logits)

    @cached_property
    def before(self) -> Float64[Tensor, " classes"]:
        """The accuracy of each class as the model is: what every candidate is compared with."""
        return self.accuracies(self.logits)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.bias)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias to take over the constant part of an edit."""
        paths = [path for path in self.hooked.heads if path in self.site.readers]
        layers = map(self.hooked.model.get_submodule, paths)
        # All of several heads: a shift that one of them cannot take is not the shift of the logits.
        return all(isinstance(layer._parameters.get("bias"), Tensor) for layer in layers)

    def check_classes(self, classes: Sequence[int], name: str) -> None:
        """Raise InputError unless these are classes; `name` is what the caller calls them."""
        if not all(0 <= whole(one, name) < self.n_classes for one in classes):
            raise InputError(
                f"{name} {list(classes)[:10]} holds what is no class of the head: it has 0 to "
                f"{self.n_classes - 1}"
            )

    def check_kept(self, keep: Sequence[int]) -> None:
        """Raise InputError unless these are classes with images: of others no loss is known."""
        self.check_classes(keep, "keep")
        unseen = [label for label in keep if not bool((self.labels == label).any())]
        if unseen:
            raise InputError(
                f"keep {list(keep)[:10]} holds classes {unseen[:10]}, of which there are no images "
                "in the recording: what an edit costs them is unknown. Record some, or leave them "
                "out"
            )

    def after(self, edit: Edit) -> Float[Tensor, "images classes"]:
        """Return the logits of the recorded images with an edit of the classifier."""
        weight, bias = edited_head(self, edit)
        return torch.addmm(bias, self.x, weight.T)

    def accuracies(self, logits: Float[Tensor, "images classes"]) -> Float64[Tensor, " classes"]:
        """Return the accuracy of each class; NaN for one without images."""
        return accuracies(logits, self.labels)


@torch.no_grad()
def edited_head(head: JudgedHead, edit: Edit) -> tuple[Tensor, Tensor]:
    """Return weight and bias as an edit of the classifier would make them; nothing is written."""
    hooked = head.hooked
    slots = slots_of(hooked.model, edit.base.tensors)
    present = {path: ledger_of(slot) for path, slot in slots.items()}
    plain = all(slot.parameter.dtype == torch.float32 for slot in slots.values())
    if isinstance(edit.operator, Gate) and plain and not any(present.values()):
        # No bias, no sum, no rounding to another type: one multiplication.
        return scaled_rows(head.weight, edit.gate.factors, edit.rows), head.bias
    pristine = {path: pristine_of(slot).cpu() for path, slot in slots.items()}

    def rows_of(path: str, rows: Rows) -> Tensor:
        return take(pristine[path], rows)

    # By the ledger's own formula, with the edits that are there already: what is judged are the
    # bits that applying the edit would write.
    entries: dict[str, list[Entry]]
    entries = {path: [] if old is None else [*old.entries] for path, old in present.items()}
    for path, entry in entries_of(edit, rows_of):
        entries[path].append(entry)
    made: dict[str, Tensor] = {}
    for path, own in entries.items():
        rows = union_of([entry.rows for entry in own])
        parameter = pristine[path].clone()
        ledger = Ledger(tuple(own), rows, take(parameter, rows).clone())
        parameter[index_of(rows)] = composed(ledger)
        made[path] = parameter
    weight, bias = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    for path, share in hooked.heads.items():
        if path not in head.site.readers:
            continue
        layer = hooked.model.get_submodule(path)
        own_weight = made.get(f"{path}.weight", layer.get_parameter("weight").detach().cpu())
        weight += share * own_weight.float().flatten(1)
        if isinstance(layer._parameters.get("bias"), Tensor):
            own_bias = made.get(f"{path}.bias", layer.get_parameter("bias").detach().cpu())
            bias += share * own_bias.float()
    return weight, bias
