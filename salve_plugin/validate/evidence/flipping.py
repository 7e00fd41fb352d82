"""The fewest latents whose contributions, taken away, change a decision."""

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from salve_plugin.control.evaluate import check_logits
from salve_plugin.control.networks import Networks
from salve_plugin.control.solving import two_sided
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.reads import check_dictionary
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel, check_attached
from salve_plugin.images import run
from salve_plugin.integers import seed_number
from salve_plugin.modes import evaluating, without_autocast
from salve_plugin.network import OnBaseMismatch
from salve_plugin.taps import reading
from salve_plugin.validate.evidence.head import reads_nothing_else

_TRIES = 99
"""Random orders in which latents are taken away beside."""


@dataclass(frozen=True)
class Flip:
    """What changes the decision for one image.

    Attributes:
        decision: class with the largest logit.
        becomes: the class that the decision becomes; None if no set of latents changes it.
        latents: the fewest that do, those with the largest contributions first; empty if none do.
        by_chance: median number that have to be taken away in random order of the active ones;
            None if in most orders all of them do not change it.
    """

    __repr__ = one_line

    decision: int
    becomes: int | None
    latents: tuple[int, ...]
    by_chance: int | None


@dataclass(frozen=True, repr=False)
class Flips(Tabular):
    """What changes the decisions for some images.

    Attributes:
        images: one for each.
    """

    images: tuple[Flip, ...]

    def __repr__(self) -> str:
        """Say in one line how many decisions can be changed."""
        changed = sum(flip.becomes is not None for flip in self.images)
        return f"<Flips: {changed} of {len(self.images)} decisions hang on some latents>"

    def as_table(self) -> Table:
        """Return one row for each image."""
        rows = [
            (
                image, flip.decision, flip.becomes, len(flip.latents) or None, flip.by_chance,
                ", ".join(map(str, flip.latents[:8])) or "-",
            )
            for image, flip in enumerate(self.images)
        ]  # fmt: skip
        head = ("image", "decision", "becomes", "latents", "in random order", "which")
        return Table("The fewest latents that a decision hangs on", head, rows)


@torch.no_grad()
@without_autocast()
def fewest_to_flip(
    hooked: HookedModel,
    dictionary: Dictionary,
    images: Tensor,
    *,
    seed: int = 0,
    on_base_mismatch: OnBaseMismatch = "error",
) -> Flips:
    r"""Return the fewest latents whose contributions $z_l v_l$, taken away, change each decision.

    Of all sets, not only of those that a search meets: against one rival the logits' difference
    falls by a sum over the latents that are taken away, so the largest terms do it with the fewest,
    and the least over all rivals is the least of all. Beside it stands how many it takes in random
    order.

    Args:
        hooked: the attached model.
        dictionary: of what the classifier reads.
        images: a batch as the model takes it, (images, channels, height, width).
        seed: of the random orders.
        on_base_mismatch: "warn" takes a dictionary of another network too.

    Raises:
        InputError: if the dictionary is of something else than the classifier's input.
        BaseMismatchError: if it was learned from another network than the model.
    """
    check_attached(hooked)
    check_dictionary(dictionary)
    random = torch.Generator().manual_seed(seed_number(seed))
    site = hooked.site(dictionary.site.name)
    if not reads_nothing_else(hooked, site):
        raise InputError(
            f"the dictionary reads '{site.name}', the classifier {list(hooked.head_sites)}; learn "
            "a dictionary of what the classifier reads, and nothing else"
        )
    Networks(hooked, on_base_mismatch).check_either("the dictionary", dictionary.network)
    weight, bias = (part.detach().cpu().double() for part in hooked.unembed(site))
    with evaluating(hooked.model), reading(hooked.model, [site]) as activations:
        run(hooked.model, images, "images")
    x = site.rows(activations[site.name])
    codes = dictionary.encode(x.to(dictionary.atoms.device)).cpu().double()
    pull = dictionary.atoms.detach().cpu().double() @ weight.T
    logits = torch.addmm(bias, x.cpu().double(), weight.T)
    check_logits(logits, len(x))
    return Flips(tuple(flip_of(*each, pull, random) for each in zip(logits, codes, strict=True)))


def flip_of(
    logits: Float64[Tensor, " classes"],
    codes: Float64[Tensor, " latents"],
    pull: Float64[Tensor, "latents classes"],
    random: torch.Generator | None,
) -> Flip:
    """Return what changes one decision; see `fewest_to_flip`.

    Args:
        logits: of the image.
        codes: of the image.
        pull: what one unit of each latent adds to the logits.
        random: draws the orders; without it, how many it takes by chance is left out.
    """
    contributions = codes[:, None] * pull
    if len(logits) == 1:  # a decision between two: below 0 and above it
        contributions = torch.cat([torch.zeros_like(contributions), contributions], 1)
        logits = two_sided(logits[None])[0]
    decision = int(logits.argmax())
    lead = logits[decision] - logits
    # What each latent adds to the lead over each rival; the largest are taken away first.
    terms, order = (contributions[:, decision, None] - contributions).sort(0, descending=True)
    # Terms below 0 would only help the decision, and are never taken: without them the sums do not
    # fall again, and the first that passes the lead is the least.
    passed = terms.clamp(min=0).cumsum(0) > lead
    passed[:, decision] = False
    needed = torch.where(passed.any(0), passed.long().argmax(0) + 1, len(codes) + 1)
    rival = int(needed.argmin())
    by_chance = None
    if random is not None:
        by_chance = _by_chance(logits, contributions[codes != 0], decision, random)
    if not bool(passed[:, rival].any()):
        return Flip(decision, None, (), by_chance)
    latents = order[: int(needed[rival]), rival]
    after = logits - contributions[latents].sum(0)
    # With several rivals past the lead, the decision is the foremost; never the one that they have
    # passed, which another order of the sum may put level with them.
    after[decision] = -torch.inf
    return Flip(decision, int(after.argmax()), tuple(latents.tolist()), by_chance)


def _by_chance(
    logits: Tensor, contributions: Tensor, decision: int, random: torch.Generator
) -> int | None:
    """Return the median over random orders of how many taken away change the decision."""
    count = len(contributions)
    orders = [torch.randperm(count, generator=random) for _ in range(_TRIES)]
    needed = []
    for order in orders:
        others = (logits - contributions[order].cumsum(0)).argmax(1) != decision
        needed.append(int(others.long().argmax()) + 1 if bool(others.any()) else count + 1)
    median = sorted(needed)[_TRIES // 2]
    return median if median <= count else None
