"""How good a dictionary is: every measure in one call, beside those of its controls."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from salve_plugin.control.networks import Networks
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.base import L0_TOLERANCE
from salve_plugin.discover.reads import check_read
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.training.settings import check_number_type
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import shortened
from salve_plugin.faces.table import Table, Tabular, percent
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.integers import seed_number
from salve_plugin.kinds import of_kind, several
from salve_plugin.modes import without_autocast
from salve_plugin.network import OnBaseMismatch, check_one_network
from salve_plugin.validate import quality_report
from salve_plugin.validate.baselines import CONTROLS, control
from salve_plugin.validate.held_out import HeldOut
from salve_plugin.validate.measures import (
    Latents,
    Measures,
    measures,
    with_splice,
    with_stability,
)
from salve_plugin.validate.monosemanticity import mean_cosine
from salve_plugin.validate.reconstruction import check_finite, density_histogram
from salve_plugin.validate.recorded_splices import recorded_splices
from salve_plugin.validate.splicing import Behaviour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = "dictionary"
"""Name of the dictionary's own row."""


@dataclass(frozen=True, repr=False)
class Quality(Tabular):
    """A dictionary's measures beside those of its controls, all on the same held-out images.

    Attributes:
        rows: measures by name: `dictionary` first, then the controls.
        histograms: by name, how many latents have which density: see `density_histogram`.
        n_rows: rows measured on.
        n_images: images that they are of.
        n_held_out: held-out images of the recording, of which these are all or some.
        site: name of the site.
        learner: of the dictionary.
        dictionary_digest: its digest.
        k: active latents of a row that the TopK controls have.
        l0_tolerance: |z| above this share of the data's root mean squared distance from their mean
            counts as active.
        seed: of controls, nulls and permutations.
        initializations: how the atoms of the dictionary and of each other one started, as their
            `meta` says; None where it does not.
        clean: the untouched model; None if nothing was spliced.
        mean_ablation: the model with the site replaced by its mean.
        zero_ablation: the model with the site replaced by zero.
        mean_cosine: mean cosine of two images' embeddings, the monosemanticity of a latent that
            does not care; None without embeddings.
    """

    rows: Mapping[str, Measures]
    histograms: Mapping[str, tuple[int, ...]]
    n_rows: int
    n_images: int
    n_held_out: int
    site: str
    learner: str
    dictionary_digest: str
    k: int
    l0_tolerance: float
    seed: int
    initializations: tuple[str | None, ...]
    clean: Behaviour | None = None
    mean_ablation: Behaviour | None = None
    zero_ablation: Behaviour | None = None
    mean_cosine: float | None = None

    @property
    def dictionary(self) -> Measures:
        """The dictionary's own measures."""
        return self.rows[OWN]

    @property
    def controls(self) -> dict[str, Measures]:
        """The controls' measures by name."""
        return {name: row for name, row in self.rows.items() if name != OWN}

    def __repr__(self) -> str:
        """Say in one line how good the dictionary is, and beside what."""
        own = self.dictionary
        return shortened(
            f"<Quality of a '{self.learner}' dictionary of '{self.site}' on {self.n_images} "
            f"images: R² {own.r2:.3f}, L0 {own.l0:.1f}, {percent(own.dead_share)} dead; beside "
            f"{', '.join(self.controls) or 'no controls'}>"
        )

    def table(self) -> str:
        """Return all numbers as an aligned table, one column for each dictionary, and notes."""
        return str(self)

    def as_table(self) -> Table:
        """Return the same as a table."""
        return quality_report.table(self)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        values = asdict(self)
        values["histograms"] = {name: list(bins) for name, bins in self.histograms.items()}
        values["initializations"] = list(self.initializations)
        return values

    def figure(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Draw the density histogram and the main measures beside those of the controls.

        Args:
            path: also write it there, in the format of the suffix (PNG without one).

        Raises:
            InputError: if matplotlib does not know the format.
            WriteError: if the file cannot be written.
        """
        return quality_report.figure(self).written(path)


@torch.no_grad()
@without_autocast()
def quality(
    dictionary: Dictionary,
    acts: Activations,
    *,
    hooked: HookedModel | None = None,
    loader: Iterable[Any] | None = None,
    others: Sequence[Dictionary] = (),
    embeddings: Float[Tensor, "images dim"] | None = None,
    controls: Sequence[str] = CONTROLS,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Quality:
    """Measure a dictionary and its controls on the recording's held-out images.

    The held-out images are those that `fit` never trains on, one in ten; of more than 65 536
    held-out rows, or 67 million codes of images, evenly chosen images are taken. What is not asked
    for is None and printed as "-": without `hooked` nothing is spliced, without `others` there is
    no stability, without `embeddings` no monosemanticity. Nor is there separability with fewer than
    two classes, or an amortization gap of codes that are no sums of few atoms (L0 above half the
    width, or another decoder than z V + b_d).

    Args:
        dictionary: trained on `acts`.
        acts: recording of the dictionary's site.
        hooked: the recorded model, for cross-entropy, accuracy and KL with reconstructions spliced
            in: in closed form if the site is all that the classifier reads.
        loader: what `record` was given, needed only to splice at other sites.
        others: dictionaries of the same site and size, trained with other seeds. Each control is
            then compared with itself of another seed.
        embeddings: one for each image of the recording, in its order, by another network.
        controls: which; see `salve_plugin.validate.baselines.control`. TopK ones keep as many
            latents active as the dictionary has on average.
        seed: of whatever is random in controls, nulls and permutations.
        on_base_mismatch: "warn" goes on with dictionaries or a model of another network than the
            recording's, such as one that was fine-tuned since.

    Raises:
        InputError: if a dictionary's site is not the recording's, no image is held out, a value is
            NaN or infinite, `others` have other shapes or are no others, `embeddings` another
            length, `loader` is missing or not the recorded one, there is no such control, or
            `hooked` is given and images have several labels or targets.
        BaseMismatchError: if the model has no such site as the recording, or a dictionary or the
            model, as it is, is of another network than the recording.
        ReadError: if a shard or an image cannot be read.
    """
    _check(dictionary, acts, others, embeddings, controls)
    seed = seed_number(seed)
    _check_networks(dictionary, acts, hooked, others, on_base_mismatch)
    # The control `neurons` has as many latents as there are features.
    data = HeldOut.of(acts, n_latents=max(dictionary.n_latents, acts.width), seed=seed)
    own_latents = Latents.of(dictionary, data)
    # Controls spend as many latents as the dictionary does, or they would win by sparsity alone.
    k = min(max(1, round(float(own_latents.l0.mean()))), dictionary.n_latents)
    dictionaries = {OWN: dictionary}
    for name in controls:
        dictionaries[name] = control(name, acts, dictionary, k=k, seed=seed)
    splices = {} if hooked is None else recorded_splices(dictionaries, acts, data, hooked, loader)
    # Of the images measured on; all were checked above, in the recording's order.
    chosen_embeddings = None if embeddings is None else embeddings[data.chosen]
    rows, histograms = {}, {}
    for name, measured_dictionary in dictionaries.items():
        # Encoded one after the other: the codes of all dictionaries would not fit into memory.
        latents = own_latents if name == OWN else Latents.of(measured_dictionary, data)
        measured = measures(
            measured_dictionary, data, latents, embeddings=chosen_embeddings, seed=seed
        )
        if name in splices:
            measured = with_splice(measured, splices[name])
        if others:
            # A control is compared with another draw of itself: beside the dictionary's runs it
            # would say nothing.
            reruns = others
            if name != OWN:  # the atoms of `frozen` are its initial ones: a step shows them
                reruns = [control(name, acts, dictionary, k=k, seed=seed + 1, steps=1)]
            measured = with_stability(
                measured, measured_dictionary, reruns, signed=not latents.signed, seed=seed
            )
        rows[name] = measured
        histograms[name] = tuple(density_histogram(latents.density).tolist())
    return Quality(
        rows=rows,
        histograms=histograms,
        n_rows=len(data.x),
        n_images=data.n_images,
        n_held_out=data.n_held_out,
        site=acts.site.name,
        learner=dictionary.learner,
        dictionary_digest=dictionary.digest,
        k=k,
        l0_tolerance=L0_TOLERANCE,
        seed=seed,
        initializations=tuple(
            _initialization(measured_dictionary) for measured_dictionary in (dictionary, *others)
        ),
        clean=splices[OWN].clean if splices else None,
        mean_ablation=splices[OWN].mean if splices else None,
        zero_ablation=splices[OWN].zero if splices else None,
        mean_cosine=mean_cosine(chosen_embeddings)
        if chosen_embeddings is not None and len(chosen_embeddings) > 1
        else None,
    )


def _check(
    dictionary: Dictionary,
    acts: Activations,
    others: Sequence[Dictionary],
    embeddings: Tensor | None,
    controls: Sequence[str],
) -> None:
    """Raise InputError for what can be seen before anything is computed."""
    check_number_type()
    several(others, "others", "dictionaries of other seeds")
    several(controls, "controls", f"some of {list(CONTROLS)}")
    for checked in (dictionary, *others):
        check_read(checked, acts)
    wrong = [checked.n_latents for checked in others if checked.n_latents != dictionary.n_latents]
    if wrong:
        raise InputError(
            f"the dictionary has {dictionary.n_latents} latents, others have {wrong}; stability "
            "compares runs of one size: train them with the same n_latents"
        )
    # Not by content: learners that draw nothing find the same again, and that is a result.
    if len({id(checked) for checked in (dictionary, *others)}) <= len(others):
        raise InputError(
            "the dictionary is among the others, or one of them is given twice: a dictionary is "
            "as stable as can be beside itself; train the others with other seeds"
        )
    # Before `frozen`, which is trained, would be made for nothing.
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown:
        raise InputError(f"no controls {unknown}; choose from {list(CONTROLS)}")
    if embeddings is None:
        return
    of_kind(embeddings, Tensor, "embeddings", "a tensor (images, dim)")
    if embeddings.ndim != 2 or len(embeddings) != acts.n_images:
        raise InputError(
            f"embeddings of shape {tuple(embeddings.shape)} do not fit the recording's "
            f"{acts.n_images} images: expected (images, dim), in the recording's order"
        )
    check_finite(embeddings, "embeddings")


def _check_networks(
    dictionary: Dictionary,
    acts: Activations,
    hooked: HookedModel | None,
    others: Sequence[Dictionary],
    on_base_mismatch: OnBaseMismatch,
) -> None:
    check_one_network(
        {
            "the recording": acts.network_sha256,
            "the dictionary": dictionary.network,
            **{f"dictionary {n} of the others": other.network for n, other in enumerate(others)},
        },
        on_base_mismatch,
    )
    if hooked is not None:
        check_attached(hooked)
        networks = Networks(hooked, on_base_mismatch)
        networks.check_present("the recording", acts.network_sha256)


def _initialization(dictionary: Dictionary) -> str | None:
    name = dictionary.meta.get("initialization")
    return name if isinstance(name, str) else None
