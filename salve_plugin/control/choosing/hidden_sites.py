"""At which hidden sites a concept is taken out, where nobody names them, and in which sets of them.

Of n sites there are 2ⁿ sets. What one site loses, the layers behind it compute again from what is
left, so that sites next to each other in depth belong together: tried are all of them, those of the
front half, and those of the back half.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from salve_plugin.control.exactness import nearest, takes
from salve_plugin.control.operators import LowRankMap, Role
from salve_plugin.control.targets import targets_at
from salve_plugin.errors import InputError, UnsupportedModelError
from salve_plugin.hooks import HookedModel
from salve_plugin.site import Site

MOST_SITES = 8
"""Sites that are proposed: of more, so many that lie evenly in depth. It bounds the cost."""

RANKS = (1, 4)
"""Directions in which pairs are repaired at every site."""

READ, INSIDE, WRITTEN = range(3)
"""Kinds of sites, in the order in which they are preferred: what branches read, what layers inside
branches read, and what has no readers of its own."""


@dataclass(frozen=True)
class SiteSet:
    """Hidden sites that are edited together.

    Attributes:
        sites: by depth.
        rank: of the repair at each, where the concept's images are pairs.
    """

    sites: tuple[str, ...]
    rank: int


def site_sets(sites: Sequence[str], *, paired: bool) -> list[SiteSet]:
    """Return the sets that are tried, from few sites and directions to more.

    Args:
        sites: by depth.
        paired: whether the concept's images are pairs, which can be repaired in several ranks.
    """
    every, half = tuple(sites), len(sites) // 2
    parts = [every[:half], every[half:]] if half else []
    sets = [SiteSet(part, RANKS[0]) for part in (*parts, every)]
    return sets + [SiteSet(every, rank) for rank in RANKS[1:] if paired]


def named_sites(hooked: HookedModel, names: Sequence[str], head: Site) -> list[str]:
    """Return sites that somebody has named, by depth.

    Raises:
        InputError: if there is none, one is named twice, or is the classifier's input.
        UnknownSiteError: if the model has no such site.
        UnsupportedModelError: if no weights take an eraser over exactly at one.
    """
    # By the names that they have there: a layer's is another name for its site.
    sites = [hooked.site(name) for name in names] if _is_list(names) else []
    found = [site.name for site in sites]
    if not found or len(set(found)) < len(found):
        raise InputError(
            f"sites {names!r:.200} are to be a list of names, each once, or 'exact' for those "
            "where weights take an eraser over exactly"
        )
    if head.name in found:
        raise InputError(
            f"sites name '{head.name}', the classifier's input, which is edited anyway; name "
            "earlier ones"
        )
    for site in sites:
        try:
            targets_at(hooked.model, site, _like(site))
        except UnsupportedModelError as error:
            way_out = nearest(hooked, site, _like(site))
            raise UnsupportedModelError(f"{error}. {way_out}") from None
    return sorted(found, key=list(hooked.sites).index)


def _is_list(names: object) -> bool:
    return isinstance(names, Sequence) and not isinstance(names, str | bytes)


def exact_sites(hooked: HookedModel, head: Site) -> list[str]:
    """Return the sites in front of the classifier where an eraser is exact, by depth.

    Where branches read is preferred to what is inside them or what they write: the edits of all
    branches' inputs together are an edit of the stream, as far as the branches read it. On unseen
    pairs of the benchmark's ViT of seed 0 they remove more than edits of the same branches'
    outputs, for each of three attributes, and for one as much as those of all 18 exact sites. At
    most `MOST_SITES`.
    """
    kinds: dict[int, list[Site]] = {}
    for site in hooked.sites.values():
        inside = ".attn." in site.name or ".mlp." in site.name
        kind = (INSIDE if inside else READ) if site.readers else WRITTEN
        if site.name != head.name and not set(site.readers) & set(hooked.heads):
            kinds.setdefault(kind, []).append(site)
    for kind in sorted(kinds):
        role: Role = "writer" if kind == WRITTEN else "reader"
        # Spread first, then tried: each try measures an edit on a copy of the model.
        near = _spread([site for site in kinds[kind] if site.readers or site.writers])
        exact = [site.name for site in near if _is_exact(hooked, site, role)]
        if exact:
            return exact
    return []


def takes_offset(hooked: HookedModel, site: Site) -> bool:
    """Say whether the layers around a site can take over a map that moves the origin."""
    try:
        return bool(targets_at(hooked.model, site, _like(site, 1.0)))
    except UnsupportedModelError:
        return False


def _like(site: Site, offset: float = 0.0) -> LowRankMap:
    # Whether weights can take over a map depends on its form and its offset, not on its direction.
    ones = torch.ones(site.width, 1)
    return LowRankMap(ones, ones, torch.full((1,), offset))


def _is_exact(hooked: HookedModel, site: Site, role: Role) -> bool:
    return takes(hooked, site, _like(site, float(takes_offset(hooked, site))), role)


def _spread(sites: Sequence[Site]) -> list[Site]:
    """Return at most `MOST_SITES` of the sites, the first and the last among them."""
    if len(sites) <= MOST_SITES:
        return list(sites)
    steps = torch.linspace(0, len(sites) - 1, MOST_SITES).round().long().tolist()
    return [sites[step] for step in steps]
