"""The claims of SALVE (arXiv 2512.15938) and the rules by which `paper.py` judges them.

The paper states its claims in prose; here each is put so that numbers can decide it. A verdict
is a function of the numbers alone, and its rule is printed with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.salve_paper.common import Numbers
from benchmarks.salve_paper.curves import ALLOWED, GOAL

Verdict = Literal["holds", "holds in part", "does not hold", "not tested"]

MOST, HALF = 0.9, 0.5
"""Shares of the classes (or latents, or seeds) for "holds" and for "holds in part"."""

CLEAR = 0.05
"""A mean gain counts as larger than a control's if it is larger by this much."""

ORDER = 0.8
"""Rank correlation from which one order predicts another."""

LEVEL = 0.05
"""Of the permutation test."""

FEWEST = 5
"""Classes without which a rank correlation over classes says nothing."""


@dataclass(frozen=True)
class Claim:
    """One claim, how it is judged, and how its numbers are put into words.

    Attributes:
        name: of the experiment.
        statement: what is claimed.
        rule: of the verdict, in words.
        judge: the same as a function of the numbers.
        found: what was found, in words.
        control: what the controls gave, in words.
        own: the number in which controls are compared with what is claimed; more is better.
        rivals: the same number of each control, by its name.
    """

    name: str
    statement: str
    rule: str
    judge: Callable[[Numbers], Verdict]
    found: Callable[[Numbers], str]
    control: Callable[[Numbers], str]
    own: str
    rivals: Mapping[str, str]

    def as_good(self, numbers: Numbers) -> str:
        """Name the controls that do as well, as an addition to the verdict; empty if none does."""
        names = [
            name for name, key in self.rivals.items()
            if self.own in numbers and numbers[key] >= numbers[self.own]
        ]  # fmt: skip
        return f"; as good: {', '.join(names)}" if names else ""


def graded(holds: bool, in_part: bool) -> Verdict:
    """Return the verdict of two conditions."""
    return "holds" if holds and in_part else "holds in part" if in_part else "does not hold"


def judge_dominant(n: Numbers) -> Verdict:
    """Judge whether each class has a latent of its own that tells it."""
    # By errors, since near 1 a difference of areas says little.
    better = 1 - n["auc_dominant"] <= (1 - n["auc_random"]) / 2
    return graded(n["own_dominant"] >= MOST and n["auc_dominant"] >= MOST, better)


def judge_suppression(n: Numbers) -> Verdict:
    """Judge whether a class can be suppressed with the others kept, by its own latent only."""
    controls = max(n["met_random_latent"], n["met_random_direction"])
    enough = n["met_dominant"] >= HALF
    return graded(n["met_dominant"] >= MOST and controls <= n["met_dominant"] / 2, enough)


def judge_enhancement(n: Numbers) -> Verdict:
    """Judge whether enhancing gives a class more than enhancing anything else does."""
    controls = max(n["gain_random_latent"], n["gain_random_direction"])
    rises = n["rising"] >= HALF and n["gain_dominant"] > 0
    return graded(n["rising"] >= MOST and n["gain_dominant"] >= controls + CLEAR, rises)


def judge_crossing(n: Numbers) -> Verdict:
    """Judge whether shared latents carry two classes and no others."""
    selective = n["selective_learned"]
    in_part = selective > n["selective_random"]
    return graded(selective >= MOST - 0.1 and n["selective_random"] <= selective / 2, in_part)


def judge_closed_form(n: Numbers) -> Verdict:
    """Judge whether the closed form is the strength at which the logit is gone."""
    if not n["finite"]:
        return "not tested"
    exact = n["near"] >= MOST and abs(n["left"]) <= CLEAR
    return graded(exact, exact or n["order"] >= ORDER)


def judge_diagnosis(n: Numbers) -> Verdict:
    """Judge whether the critical strength tells which classes break first, better than margins."""
    if n["classes"] < FEWEST:
        return "not tested"
    predicts = n["predicts_zero"] >= ORDER
    return graded(predicts and n["predicts_zero"] > n["predicts_margin"],
                  n["predicts_zero"] >= HALF)  # fmt: skip


def judge_initialisations(n: Numbers) -> Verdict:
    """Judge whether seeds agree on dominant latents and on what suppressing them does."""
    if n["seeds"] < 2:
        return "not tested"
    alike = n["dominant"] >= MOST
    in_part = alike or n["dominant"] >= n["other_classes"] + 0.2 or n["agreement"] >= MOST
    return graded(alike and n["agreement"] >= MOST, in_part)


def judge_sharing(n: Numbers) -> Verdict:
    """Judge whether superclasses share latents, more than any basis would show."""
    if not n:
        return "not tested"
    return graded(n["excess"] > n["random_high"], n["p"] <= LEVEL and n["excess"] > 0)


def judge_networks(verdicts: Mapping[str, Mapping[str, Verdict]]) -> Verdict:
    """Judge whether the claims hold on every network alike; `verdicts` by network, then claim."""
    if len(verdicts) < 2:
        return "not tested"
    tested = [name for name in CLAIMS if _tested(name, verdicts)]
    good = [
        name
        for name in tested
        if all(of[name] in ("holds", "holds in part") for of in verdicts.values())
    ]
    alike = [name for name in tested if len({of[name] for of in verdicts.values()}) == 1]
    everywhere = len(good) == len(alike) == len(tested)
    return graded(everywhere, 2 * len(good) >= len(tested) > 0)


def networks_found(verdicts: Mapping[str, Mapping[str, Verdict]]) -> str:
    """Say on which claims the networks agree."""
    tested = [name for name in CLAIMS if _tested(name, verdicts)]
    differ = [name for name in tested if len({of[name] for of in verdicts.values()}) > 1]
    agree = len(tested) - len(differ)
    which = f"; they differ on {', '.join(differ)}" if differ else ""
    return f"same verdict on {agree} of {len(tested)} claims{which}"


def _tested(name: str, verdicts: Mapping[str, Mapping[str, Verdict]]) -> bool:
    return all(of[name] != "not tested" for of in verdicts.values())


NETWORKS_STATEMENT = "All of this holds on convolutional and transformer networks alike."
NETWORKS_RULE = (
    "holds: each claim above that was tested has one verdict on all networks and holds at least "
    "in part; in part: at least half of them hold at least in part on all"
)


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.0f} %"


def points(value: float) -> str:
    """Return a difference of accuracies in points."""
    return f"{100 * value:+.1f}"


def _of(share: float, total: float) -> str:
    return f"{share * total:.0f} of {total:.0f}"


def _suppressed(n: Numbers, name: str) -> str:
    return (
        f"{_of(n[f'met_{name}'], n['classes'])} ({percent(n[f'target_{name}'])}, "
        f"{points(n[f'others_{name}'])})"
    )


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "dominant latents",
            "The latent with the largest |mean code| over a class, l(k), is that class's feature.",
            f"holds: {percent(MOST)} of the classes have a latent of their own, and it tells them "
            f"with a mean AUC of {MOST} or more, 1 - AUC at most half that of random directions; "
            "in part: that comparison alone",
            judge_dominant,
            lambda n: (
                f"own latent {percent(n['own_dominant'])} of classes, AUC {n['auc_dominant']:.3f}"
            ),
            lambda n: (
                f"AUC: random directions {n['auc_random']:.3f}, principal components "
                f"{n['auc_pca']:.3f}; by selection score {n['auc_score']:.3f} (own "
                f"{percent(n['own_score'])}), random by score {n['auc_random_score']:.3f}"
            ),
            "auc_dominant",
            {"random directions": "auc_random", "principal components": "auc_pca"},
        ),
        Claim(
            "suppression",
            "Suppressing l(k) on all rows takes the class to zero and leaves the others.",
            f"goal for a class: its accuracy <= {percent(GOAL)}, the others' mean loss <= "
            f"{100 * ALLOWED:.0f} point. holds: reached for {percent(MOST)} of the classes, and by "
            f"random latents and directions for at most half as many; in part: for "
            f"{percent(HALF)}",
            judge_suppression,
            lambda n: _suppressed(n, "dominant"),
            lambda n: (
                f"random latent {_suppressed(n, 'random_latent')}, random direction "
                f"{_suppressed(n, 'random_direction')}, principal component "
                f"{_suppressed(n, 'pca')}; without dictionary: zeroed row "
                f"{_suppressed(n, 'zero_row')}, mask {_suppressed(n, 'mask')}"
            ),
            "met_dominant",
            {
                "random latent": "met_random_latent",
                "random direction": "met_random_direction",
                "principal component": "met_pca",
                "zeroed row": "met_zero_row",
                "mask": "met_mask",
            },
        ),
        Claim(
            "enhancement",
            "Enhancing l(k) on all rows raises the class.",
            f"gain: share of the missing probability that the class's images get while the "
            f"others lose <= {100 * ALLOWED:.0f} point. holds: positive for {percent(MOST)} of "
            f"the classes and {CLEAR} above random latents and directions on average; in part: "
            f"positive for {percent(HALF)} and on average",
            judge_enhancement,
            lambda n: (
                f"gain {n['gain_dominant']:+.2f} (others {points(n['others_dominant'])}), "
                f"positive for {_of(n['rising'], n['classes'])}"
            ),
            lambda n: (
                f"random latent {n['gain_random_latent']:+.2f}, random direction "
                f"{n['gain_random_direction']:+.2f}, principal component {n['gain_pca']:+.2f}; "
                f"without dictionary: bias raised {n['gain_bias']:+.2f} (others "
                f"{points(n['others_bias'])})"
            ),
            "gain_dominant",
            {
                "random latent": "gain_random_latent",
                "random direction": "gain_random_direction",
                "principal component": "gain_pca",
                "bias": "gain_bias",
            },
        ),
        Claim(
            "cross-class latents",
            "Some latents are shared by two classes; suppressing one acts on both.",
            "selective: at half of the first class lost, both lose ten points or more and the "
            "others on average less than half of the second's loss. holds: "
            f"{percent(MOST - 0.1)} of the most shared latents are, and of random directions at "
            "most half as many; in part: more than of random directions",
            judge_crossing,
            lambda n: (
                f"{_of(n['selective_learned'], n['latents'])} selective (lost: "
                f"{percent(n['first_learned'])}, {percent(n['second_learned'])}, others "
                f"{percent(n['others_learned'])})"
            ),
            lambda n: (
                f"random directions {_of(n['selective_random'], n['latents'])} (lost: "
                f"{percent(n['first_random'])}, {percent(n['second_random'])}, others "
                f"{percent(n['others_random'])})"
            ),
            "selective_learned",
            {"random directions": "selective_random"},
        ),
        Claim(
            "critical strength: closed form",
            "alpha_crit = z / sum_j w_j a_j |c_j| is the strength at which the logit is gone.",
            f"holds: within a tenth of the exact root for {percent(MOST)} of the images, and the "
            f"edited network keeps at most {percent(CLEAR)} of the logit there (median); in part: "
            f"it at least orders the images of a class (rank correlation >= {ORDER})",
            judge_closed_form,
            lambda n: (
                f"closed form / root: median {n['ratio']:.2f}, within a tenth for "
                f"{percent(n['near'])}, never for {percent(n['never'])}; the edited network keeps "
                f"{percent(n['left'])} of the logit there; order within classes {n['order']:.2f}"
            ),
            lambda n: (
                f"the exact root: a scan agrees for {n['agree']:.0f} of {n['images']:.0f} "
                f"({n['finite']:.0f} have a root); the edited network keeps at most "
                f"{n['residual']:.0e} of the logit there"
            ),
            "near",
            {},
        ),
        Claim(
            "critical strength: diagnosis",
            "alpha_crit tells how much a class relies on its latent: which classes break first.",
            "by class, the median closed form against the median strength at which images leave "
            f"the class. holds: rank correlation >= {ORDER} and above the margin's; in part: >= "
            f"{HALF}; fewer than {FEWEST} classes are not tested",
            judge_diagnosis,
            lambda n: f"rank correlation {n['predicts_zero']:+.2f} over {n['classes']:.0f} classes",
            lambda n: f"the unedited network's median margin {n['predicts_margin']:+.2f}",
            "predicts_zero",
            {"margin": "predicts_margin"},
        ),
        Claim(
            "initialisations",
            "Dominant latents and effects are stable over the autoencoder's initialisation.",
            f"holds: l(k) of other seeds has a mean absolute cosine of {MOST} or more with the "
            f"first's, and seeds agree for {percent(MOST)} on whether a class reaches the "
            "suppression goal (majority's share); in part: the cosine exceeds that of different "
            "classes' latents by 0.2, or the latter alone",
            judge_initialisations,
            lambda n: (
                f"{n['seeds']:.0f} seeds: cosine of l(k) {n['dominant']:.2f}; goal reached "
                f"for {percent(n['met'])} of classes ({percent(n['met_least'])} to "
                f"{percent(n['met_most'])} by seed), agreement {percent(n['agreement'])}"
            ),
            lambda n: (
                f"cosine of different classes' latents {n['other_classes']:.2f}; all atoms, "
                f"matched, {n['cosine']:.2f}, random atoms {n['null_cosine']:.2f}"
            ),
            "dominant",
            {"different classes": "other_classes"},
        ),
        Claim(
            "superclasses",
            "Classes of one superclass share latents (CIFAR-100-like data).",
            "excess: Jaccard index of the latents of two classes, within minus across "
            f"superclasses. holds: above permuted classes (p <= {LEVEL}) and above 95 % of random "
            "bases; in part: the former alone",
            judge_sharing,
            lambda n: (
                f"excess {n['excess']:+.3f} ({n['classes']:.0f} classes, "
                f"{n['superclasses']:.0f} superclasses), permutation p {n['p']:.3f}"
            ),
            lambda n: (
                f"random directions {n['random_mean']:+.3f} (95 %: {n['random_high']:+.3f}), "
                f"the features themselves {n['neurons']:+.3f}"
            ),
            "excess",
            {"random directions": "random_mean", "features themselves": "neurons"},
        ),
    )
}
