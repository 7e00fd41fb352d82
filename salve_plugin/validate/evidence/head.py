"""A classifier that reads what the dictionary reads and nothing else: no model has to run."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from salve_plugin.control.layered_head import LayeredHead
from salve_plugin.control.networks import Networks
from salve_plugin.control.solving import check_labels
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import check_of_model
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.network import OnBaseMismatch, check_one_network
from salve_plugin.site import Site


@dataclass(frozen=True, eq=False)
class ReadHead:
    """A linear classifier and the atoms of a dictionary of its input.

    Attributes:
        weight: (classes, width).
        bias: (classes,).
        pull: what one unit of each latent adds to each logit, V W^T (latents, classes).
        gated: what of the weight a further gate scales: what edits of low rank have added stays.
    """

    weight: Float64[Tensor, "classes width"]
    bias: Float64[Tensor, " classes"]
    pull: Float64[Tensor, "latents classes"]
    gated: Float64[Tensor, "classes width"]

    def logits(self, x: Float[Tensor, "images width"]) -> Float64[Tensor, "images classes"]:
        """Return the logits of recorded inputs."""
        return torch.addmm(self.bias, x.double(), self.weight.T)


def reads_nothing_else(hooked: HookedModel, site: Site) -> bool:
    """Say whether a site is all that the classifier reads, one row an image."""
    # Distilled models have several heads, of which each may read a site of its own.
    every_head = bool(hooked.heads) and set(hooked.heads) <= set(site.readers)
    return every_head and site.layout == "pooled"


def is_head_input(hooked: HookedModel, acts: Activations) -> bool:
    """Say whether the recording is all that the classifier reads, one row an image."""
    site = hooked.sites.get(acts.site.name)
    return site is not None and reads_nothing_else(hooked, site) and acts.n_rows == acts.n_images


@torch.no_grad()
def read_head(hooked: HookedModel, dictionary: Dictionary, acts: Activations) -> ReadHead:
    """Return the classifier that a recording is the whole input of.

    Raises:
        InputError: if it reads something else, or the labels are not its classes.
    """
    if not is_head_input(hooked, acts):
        raise InputError(
            f"the recording is of '{acts.site.name}', but the classifier reads "
            f"{list(hooked.head_sites)}: without a forward pass, effects are known only where all "
            "of its input was recorded, one row an image; record that site and learn a dictionary "
            "of it"
        )
    weight, bias = (part.detach().cpu().double() for part in hooked.unembed(acts.site.name))
    # One logit tells two classes apart.
    check_of_model(acts.classes, max(2, len(bias)))
    check_labels(acts.image_labels(), max(2, len(bias)))
    pull = dictionary.atoms.detach().cpu().double() @ weight.T
    layers = LayeredHead.of(hooked, hooked.site(acts.site.name), weight)
    return ReadHead(weight, bias, pull, layers.scaled)


def check_parts(
    hooked: HookedModel, dictionary: Dictionary, acts: Activations, on_base_mismatch: OnBaseMismatch
) -> None:
    """Raise unless model, dictionary and recording belong together.

    Raises:
        InputError: if the dictionary was learned at another site, or `hooked` is no attached model.
        BaseMismatchError: if one is of another network than the recording.
    """
    check_attached(hooked)
    check_read(dictionary, acts)
    check_one_network(
        {"the recording": acts.network_sha256, "the dictionary": dictionary.network},
        on_base_mismatch,
    )
    # As it is, edits included: effects are measured on the weights that are there.
    Networks(hooked, on_base_mismatch).check_present("the recording", acts.network_sha256)


def evenly(count: int, most: int) -> Tensor:
    """Return up to `most` of the indices below `count`, evenly spaced."""
    few = min(count, most)
    # In whole numbers, which are exact for any count.
    return torch.arange(few) * count // max(1, few)


def over_classes(labels: Int64[Tensor, " images"], most: int) -> Int64[Tensor, " chosen"]:
    """Return up to `most` images, ascending, evenly spaced among them in order of their class."""
    # Evenly from the recording could fall in step with labels that come in turns, and miss classes.
    return labels.argsort(stable=True)[evenly(len(labels), most)].sort().values


def rows_of(acts: Activations, chosen: Tensor) -> Float[Tensor, "images width"]:
    """Return the recorded rows of some images, given ascending, of one row each."""
    wanted = torch.zeros(acts.n_images, dtype=torch.bool)
    wanted[chosen] = True
    batches = acts.batches(1024, keep=lambda images: wanted[images.long()])
    return torch.cat([batch.x for batch in batches])
