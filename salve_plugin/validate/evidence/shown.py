"""What needs the recorded images themselves: maps that are blurred, regions beside masks."""

import os
from collections.abc import Iterator, Sequence

from jaxtyping import Float, Int, Int64
from torch import Tensor

from salve_plugin.control.base import bare
from salve_plugin.control.solving import check_labels
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.labels import n_outputs
from salve_plugin.errors import AttributionError
from salve_plugin.faces.progress import bar
from salve_plugin.hooks import HookedModel
from salve_plugin.network import network_digest
from salve_plugin.store.digest import content_digest, state_digest
from salve_plugin.validate.activity import Activity
from salve_plugin.validate.evidence.dissection import SegmentProfile, dissect
from salve_plugin.validate.evidence.hidden_effects import hidden_effects
from salve_plugin.validate.evidence.kept import Kept
from salve_plugin.validate.evidence.map_falls import MAPPED, REGIONS, MapFalls, map_falls
from salve_plugin.validate.evidence.recorded_images import BATCH, RecordedImages


class Shown:
    """One recording's images, run again.

    Attributes:
        notes: what could not be measured, and why.
    """

    def __init__(
        self,
        hooked: HookedModel,
        dictionary: Dictionary,
        images: RecordedImages,
        activity: Activity,
        folder: str | os.PathLike[str] | None,
        digest: str,
        seed: int,
        *,
        progress: bool,
    ) -> None:
        """Run nothing yet.

        Args:
            hooked: the recorded model.
            dictionary: of the recording's site.
            images: that were recorded.
            activity: of the recording.
            folder: keeps what is done.
            digest: of recording, dictionary, model and setting.
            seed: of places, pairings and other latents.
            progress: whether to show bars.
        """
        self._hooked, self._dictionary, self._activity = hooked, dictionary, activity
        # The network that runs the images need not be the recorded one (on_base_mismatch="warn").
        network = network_digest(hooked)
        self._digest = content_digest({"evidence": digest, "network": network}, {})
        self._images, self._folder, self._seed = images, folder, seed
        self._progress = progress
        self.notes: list[str] = []

    def map_falls(self) -> MapFalls | None:
        """Return what blurring maps does; None without maps."""
        kept = self._kept("maps", {"mapped": MAPPED, "regions": REGIONS}, {})
        try:
            with bar("maps", self._dictionary.n_latents, self._progress) as update:
                return map_falls(
                    self._hooked, self._dictionary, self._images, self._activity, kept,
                    seed=self._seed, update=update,
                )  # fmt: skip
        except AttributionError as error:
            self.notes.append(f"no maps: {error}")
            return None

    def segments(
        self, grid: Int[Tensor, "images grid grid"], names: Sequence[str] | None
    ) -> SegmentProfile | None:
        """Return the segments that latents' regions cover; None without codes by position.

        Args:
            grid: masks from `masks_on_grid`.
            names: that `check_segments` let pass. They are not kept: others may come with numbers
                that are.
        """
        kept = self._kept("segments", {}, {"masks": grid})
        tensors = kept.read(0)
        if tensors is None:
            try:
                found = dissect(self._maps, grid, names, self._seed)
            except AttributionError as error:
                self.notes.append(f"no regions: {error}")
                return None
            tensors = {
                name: value for name, value in vars(found).items() if isinstance(value, Tensor)
            }
            kept.write(0, tensors)
        return SegmentProfile(None if names is None else tuple(names), **tensors)

    def effects(self, labels: Int64[Tensor, " images"], told: Tensor) -> dict[str, Tensor]:
        """Return what interventions at the site do, by running the network.

        Args:
            labels: of the images.
            told: the class that each latent tells.

        Raises:
            InputError: if a label is no class of the model.
        """
        classes = n_outputs(self._hooked)
        if classes is not None:
            check_labels(labels, max(2, classes))
        # Layers behind the site count, which neither recording nor dictionary knows.
        kept = self._kept("effects", {"state": state_digest(bare(self._hooked))}, {"told": told})
        with bar("interventions", self._dictionary.n_latents, self._progress) as update:
            return hidden_effects(
                self._hooked, self._dictionary, self._images, labels, told, kept,
                seed=self._seed, update=update,
            )  # fmt: skip

    def _maps(self) -> Iterator[Float[Tensor, "latents h w"]]:
        """Yield the codes by position of every image, in the latents' direction."""
        from salve_plugin.validate.code_map import LayerCodeMap, code_maps  # imports captum

        fam = LayerCodeMap.of(self._hooked, self._dictionary, on_base_mismatch="warn")
        signs = self._activity.signs[:, None, None]
        for start in range(0, len(self._images), BATCH):
            batch = self._images.read(range(start, min(start + BATCH, len(self._images))))
            for codes in code_maps(fam, batch):
                yield codes.float().cpu() * signs

    def _kept(self, name: str, parts: dict[str, object], tensors: dict[str, Tensor]) -> Kept:
        return Kept(self._folder, content_digest({**parts, "shown": self._digest}, tensors), name)
