"""TCAV through Captum: do user-named concepts raise a class's logit more than random images do?"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch
from captum.concept import TCAV, Classifier, Concept
from torch import Tensor, nn

from salve_plugin.control.concepts.logistic import logistic
from salve_plugin.discover.training.settings import check_number_type
from salve_plugin.errors import InputError
from salve_plugin.faces.table import Table, Tabular
from salve_plugin.hooks import HookedModel, SiteLike, check_attached
from salve_plugin.images import as_input, run
from salve_plugin.integers import seed_number, whole
from salve_plugin.kinds import of_kind
from salve_plugin.modes import evaluating, without_autocast
from salve_plugin.validate.evidence.permuting import upper


@dataclass(frozen=True, repr=False)
class ConceptScores(Tabular):
    """TCAV scores of concepts for one class, with those of random images.

    Attributes:
        target: the class.
        scores: by concept, the share of images whose logit rises along the concept, averaged over
            the random sets that it was told from; 1/2 is no effect.
        nulls: how far from 1/2 95 % of the random sets, in the concept's place, stay.
        p: share of the sets, the concept counted, that are as far from 1/2.
        p_all: the same, times the number of concepts; at most 1.
        sets: number of random sets.
    """

    target: int
    scores: Mapping[str, float]
    nulls: Mapping[str, float]
    p: Mapping[str, float]
    p_all: Mapping[str, float]
    sets: int

    def __repr__(self) -> str:
        """Say in one line what the scores are."""
        shown = ", ".join(f"{name!r} {score:.2f}" for name, score in self.scores.items())
        return f"<ConceptScores of class {self.target}, {self.sets} random sets: {shown:.200}>"

    def as_table(self) -> Table:
        """Return one row for each concept."""
        rows = [
            (name, score, f"0.5 ± {self.nulls[name]:.3f}", self.p[name], self.p_all[name])
            for name, score in self.scores.items()
        ]
        return Table(
            f"TCAV of class {self.target}, {self.sets} random sets",
            ("concept", "score", "random sets", "p", "p, all concepts"),
            rows,
        )


@without_autocast()
def tcav(
    hooked: HookedModel,
    at: SiteLike,
    concepts: Mapping[str, Tensor],
    random_images: Tensor,
    images: Tensor,
    *,
    target: int,
    sets: int = 19,
    seed: int = 0,
) -> ConceptScores:
    """Score concepts that are given by examples (Kim et al. 2018, TCAV), by `captum.concept.TCAV`.

    A concept is a direction that tells its examples from random images; its score is the share of
    images whose logit of a class rises along it. Random sets of the same size take the concept's
    place, each told from the others and from the concept: under the null that the examples are
    random images too, each is as likely to be the farthest from 1/2. A t-test over random sets, as
    it is common, takes scores that share the concept's one set of examples for independent ones.

    Args:
        hooked: the attached model.
        at: where the directions are, as `HookedModel.site` takes it; before the last nonlinearity,
            since at the classifier's input a logit rises for all images or for none.
        concepts: at least two example images of each (images, channels, height, width), by name.
        random_images: to draw the sets from, `sets` times as many as any concept has examples.
        images: of the class, whose logits count.
        target: the class.
        sets: random sets; no p is below 1 / (1 + sets). (sets + concepts)² / 2 directions are
            fitted.
        seed: of the sets.

    Raises:
        InputError: if there is no concept, too few images of something, no such class, or `sets` is
            below 2; or torch's default number type is not float32.
        UnknownSiteError: if the model has no such site.
    """
    check_attached(hooked)
    check_number_type("TCAV compares directions")  # so Captum makes them
    site = hooked.site(at)
    sets, target, seed = whole(sets, "sets"), whole(target, "target"), seed_number(seed)
    of_kind(concepts, Mapping, "concepts", "example images of each concept by its name")
    batches = {"random_images": random_images, "images": images} | {
        f"concepts[{name!r}]": examples for name, examples in concepts.items()
    }
    for name, batch in batches.items():
        if not of_kind(batch, Tensor, name, "a tensor (images, channels, height, width)").ndim:
            raise InputError(f"{name} is one number; expected (images, channels, height, width)")
    fewest = min((len(examples) for examples in concepts.values()), default=0)
    most = max((len(examples) for examples in concepts.values()), default=0)
    if fewest < 2 or len(random_images) < sets * most or not len(images) or sets < 2:
        raise InputError(
            f"concepts of {[len(examples) for examples in concepts.values()]} examples, "
            f"{len(random_images)} random images, {len(images)} images, sets {sets}: expected at "
            "least two examples each, as many random images in each of at least two sets, and one "
            "image; give more images, or ask for fewer sets"
        )
    model = hooked.model
    with torch.no_grad(), evaluating(model):
        classes = run(model, images[:1], "the class's images").shape[-1]
    if not 0 <= target < classes:  # Captum would count a negative one from the end
        raise InputError(f"there is no class {target}; the model has {classes}, from 0")
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        stack.enter_context(evaluating(model))
        # Captum's loaders draw from torch's global generator, which is the caller's.
        stack.enter_context(torch.random.fork_rng(devices=[]))
        # It differentiates, whatever mode the caller is in.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        method = TCAV(
            model, [site.module], classifier=_Direction(), save_path=folder,
            attribute_to_layer_input=site.side == "in",
        )  # fmt: skip
        results = {}
        for number, (name, examples) in enumerate(concepts.items()):
            random = torch.Generator().manual_seed(seed)
            # Apart from each other, as the examples are from them: sets that share images are more
            # alike than any concept is to them, and every concept would look like one.
            order = torch.randperm(len(random_images), generator=random)[: sets * len(examples)]
            drawn = [random_images[chosen] for chosen in order.view(sets, -1)]
            # Captum keeps what it computes by id: each concept has ids of its own.
            first = number * (sets + 1)
            players = [
                Concept(first + i, f"set-{first + i}", [_differentiable(model, part)])
                for i, part in enumerate([examples, *drawn])
            ]
            shown = _differentiable(model, images)
            results[name] = _means(method, players, shown, site.module, target)
    scores, nulls, p = {}, {}, {}
    for name, means in results.items():
        far = (means - 0.5).abs()
        scores[name] = float(means[0])
        nulls[name] = float(upper(far[1:, None])[0])
        # Equal scores may have been summed in another order.
        p[name] = float((far >= far[0] - 1e-9).double().mean())
    p_all = {name: min(1.0, value * len(p)) for name, value in p.items()}
    return ConceptScores(target, scores, nulls, p, p_all, sets)


def _differentiable(model: nn.Module, images: Tensor) -> Tensor:
    """Return images as the model takes them, copied if autograd would refuse them."""
    images = as_input(model, images)
    return images.clone() if images.is_inference() else images


def _means(method: TCAV, players: list[Concept], images: Tensor, layer: str, target: int) -> Tensor:
    """Return each player's mean score against all others, the concept's first."""
    pairs = [[a, b] for i, a in enumerate(players) for b in players[i + 1 :]]
    told = method.interpret(images, pairs, target=target)
    totals = torch.zeros(len(players), dtype=torch.float64)
    for a, b in pairs:
        first, second = told[f"{a.id}-{b.id}"][layer]["sign_count"].double().tolist()
        totals[players.index(a)] += first
        totals[players.index(b)] += second
    return totals / (len(players) - 1)


class _Direction(Classifier):  # type: ignore[misc] # captum is untyped
    """The normal of the logistic regression between two sets, the same for the same examples."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._ids: list[int] = []
        self._weights = torch.empty(0, 0)

    def train_and_eval(self, dataloader: Any, **_: Any) -> None:
        """Fit to what Captum loads: rows and the ids of their concepts."""
        parts = list(dataloader)
        x = torch.cat([rows for rows, _ in parts]).cpu().double()
        ids = torch.cat([labels for _, labels in parts]).flatten().cpu()
        self._ids = ids.unique().tolist()  # type: ignore[no-untyped-call] # torch leaves it untyped
        # Centred and of one scale, so that the pull to zero means the same at every site.
        x = x - x.mean(0)
        x = x / x.square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
        weight = logistic(x, ids == self._ids[1], 1.0)[:-1]
        self._weights = torch.stack([-weight, weight]).float()

    def weights(self) -> Tensor:
        """Return the direction to each of the two."""
        return self._weights

    def classes(self) -> list[int]:
        """Return the ids of the two."""
        return self._ids
