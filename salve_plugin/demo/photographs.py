"""The demo on a pretrained network: suppress classes of photographs and see what is left.

The network is EfficientNet-Lite0 and the images are augmented views of the photographs that
scikit-image and scikit-learn ship, each labelled with what the network itself sees in it; so
accuracy is the share of views that keep their label. With a model and an image folder both are the
user's own, and labels are the folder's.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from salve_plugin.adapter import attach, installed_adapters
from salve_plugin.control.assessment.assess import assess
from salve_plugin.control.critical import alpha_crit
from salve_plugin.control.edit import Edit
from salve_plugin.demo import pretrained
from salve_plugin.demo.environment import environment
from salve_plugin.demo.measures import ClassResult, Experiment, suppress_class
from salve_plugin.demo.progress import Steps
from salve_plugin.discover.features import profile
from salve_plugin.discover.recording.stream import record
from salve_plugin.discover.training.fit import fit
from salve_plugin.errors import InputError, SalveError
from salve_plugin.hooks import HookedModel
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.files import write_atomically
from salve_plugin.validate.heat_maps import Explained, grad_fam_pictures

if TYPE_CHECKING:
    from PIL.Image import Image

VIEWS = 32
TOP = 3
SUBJECTS = {
    "coffee": ("espresso",),
    "chelsea": ("tabby", "tiger cat"),
    "flower": ("daisy",),
}
"""Photographs shown, and the classes that are suppressed for each."""

Labelled = tuple[Tensor, Tensor]
Top = list[tuple[str, float]]


@dataclass(frozen=True)
class Subject:
    """An image (channels, height, width) as the model takes it, and the classes to suppress."""

    name: str
    classes: tuple[int, ...]
    image: Tensor


@dataclass(frozen=True)
class SubjectOutcome:
    """What suppressing a subject's classes does to its image and to all test images.

    Attributes:
        name: of the image.
        before: its most probable classes and their probabilities.
        recipe: the same with the paper's edits on all rows applied, one for each class.
        named: the same with the row-restricted edits applied.
        classes: names of the suppressed classes, those that have labelled images first.
        results: measures on the test images, one for each class that has labelled images.
        artifacts: digests of the saved row-restricted edits, one a class.
    """

    name: str
    classes: list[str]
    before: Top
    recipe: Top
    named: Top
    results: list[ClassResult]
    artifacts: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "results": [result.to_json() for result in self.results]}


def run_photographs(out: Path, *, steps: Steps) -> list[SubjectOutcome]:
    """Run on EfficientNet-Lite0 and augmented views of the packaged photographs.

    Args:
        out: folder for the results.
        steps: where progress is reported.
    """
    with steps.step("load tf_efficientnet_lite0 with its ImageNet weights"):
        network, names, photos = (
            pretrained.load_network(),
            pretrained.class_names(),
            pretrained.photos(),
        )
        transform = installed_adapters()["timm"].transform(network)
    with steps.step(f"look at {VIEWS} views of each of {len(photos)} photographs"):
        views = [augmented(photo.image, transform, seed) for seed, photo in enumerate(photos)]
        labelled = [(images, _predicted(network, images)) for images in views]
    subjects = [
        Subject(
            photo.name,
            tuple(names.index(name) for name in SUBJECTS[photo.name]),
            transform(photo.image),
        )
        for photo in photos
        if photo.name in SUBJECTS
    ]
    train = [(images[0::2], labels[0::2]) for images, labels in labelled]
    test = [(images[1::2], labels[1::2]) for images, labels in labelled]
    return _run(out, attach(network), names, (train, test), subjects, steps)


def run_own(
    out: Path,
    hooked: HookedModel,
    names: Sequence[str],
    loader: Iterable[Labelled],
    *,
    steps: Steps,
) -> list[SubjectOutcome]:
    """Run on a model and images of the user's own.

    Every second image is for discovery, the others for measuring; the three classes with the most
    images are suppressed.

    Args:
        out: folder for the results.
        hooked: the attached model.
        names: of its classes.
        loader: batches of (images, labels).
        steps: where progress is reported.

    Raises:
        InputError: if fewer than two classes have at least four images.
    """
    with steps.step("read the images"):
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    counts = torch.bincount(labels, minlength=len(names))
    chosen = [int(label) for label in counts.topk(min(3, len(counts))).indices if counts[label] > 3]
    if len(chosen) < 2:
        raise InputError(
            f"{len(chosen)} classes have four images or more, but at least two are needed; the "
            f"largest have {counts.topk(min(3, len(counts))).values.tolist()}"
        )
    subjects = [
        Subject(names[label], (label,), images[labels == label][0]) for label in sorted(chosen)
    ]
    train, test = (_batched(images[offset::2], labels[offset::2]) for offset in (0, 1))
    return _run(out, hooked, names, (train, test), subjects, steps)


def augmented(image: "Image", transform: "Callable[[Image], Tensor]", seed: int) -> Tensor:
    """Return `VIEWS` random crops (half the area or more) of an image, every second one mirrored.

    Seeded by its argument alone; the global generator is left as it was.
    """
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as pictures

    views = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in range(VIEWS):
            box = RandomResizedCrop.get_params(image, scale=[0.5, 1.0], ratio=[0.8, 1.25])
            view = pictures.crop(image, *box)
            views.append(transform(pictures.hflip(view) if index % 4 > 1 else view))
    return torch.stack(views)


def _batched(images: Tensor, labels: Tensor, size: int = 64) -> list[Labelled]:
    starts = range(0, len(labels), size)
    return [(images[at : at + size], labels[at : at + size]) for at in starts]


@torch.no_grad()
def _predicted(network: nn.Module, images: Tensor) -> Tensor:
    labels: Tensor = network(images).argmax(1)
    return labels


def _run(
    out: Path,
    hooked: HookedModel,
    names: Sequence[str],
    splits: tuple[list[Labelled], list[Labelled]],
    subjects: Sequence[Subject],
    steps: Steps,
) -> list[SubjectOutcome]:
    with steps.step("record the head's input and learn a dictionary"):
        train, test = (
            record(hooked, split, folder=out / "activations" / split_name, progress=False)
            for split, split_name in zip(splits, ("train", "test"), strict=True)
        )
        dictionary = fit(train, "l1", seed=0)
        dictionary.save_pretrained(out / "dictionary")
        experiment = Experiment(hooked, train, test, dictionary, profile(dictionary, train))
    outcomes = []
    for subject in subjects:
        with steps.step(f"{subject.name}: suppress {[names[label] for label in subject.classes]}"):
            outcomes.append(_outcome(experiment, subject, names, out))
    latents = [outcome.results[0].named.edit.latent for outcome in outcomes]
    images = torch.stack([subject.image for subject in subjects])
    with steps.step("draw Grad-FAM maps"):
        explained = Explained.of(hooked, dictionary, images, latents)
        titles = [f"{outcome.name}: {', '.join(outcome.classes)}" for outcome in outcomes]
        write_atomically(out / "grad_fam.png", explained.sheet(titles, columns=2))
    content = {
        "environment": environment(),
        "held_out_r2": dictionary.meta["held_out_r2"],
        "outcomes": [outcome.to_json() for outcome in outcomes],
    }
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(out / "results.json", text.encode() + b"\n")
    return outcomes


def _outcome(
    experiment: Experiment, subject: Subject, names: Sequence[str], out: Path
) -> SubjectOutcome:
    known = set(experiment.train.labels().tolist()) & set(experiment.test.labels().tolist())
    recorded = [label for label in subject.classes if label in known]
    results = [suppress_class(experiment, label, seed=0) for label in recorded]
    if not results:
        raise InputError(
            f"no image of '{subject.name}' has a label among "
            f"{[names[label] for label in subject.classes]}"
        )
    named = [result.named.edit for result in results]
    # A class of the same thing that no view is labelled with (tabby beside tiger cat): the same
    # latent at the same strength, on its own row.
    others = [label for label in subject.classes if label not in known]
    named += [replace(named[0], rows=(label,)) for label in others]
    labels = [*recorded, *others]
    return SubjectOutcome(
        name=subject.name,
        classes=[names[label] for label in labels],
        before=_top(experiment.hooked, subject.image, names, []),
        recipe=_top(experiment.hooked, subject.image, names, [r.recipe.edit for r in results]),
        named=_top(experiment.hooked, subject.image, names, named),
        results=results,
        artifacts=[
            _shared(
                experiment, edit, subject, names, out / "artifacts" / names[label].replace(" ", "-")
            )
            for label, edit in zip(labels, named, strict=True)
        ],
    )


@torch.no_grad()
def _top(hooked: HookedModel, image: Tensor, names: Sequence[str], edits: Sequence[Edit]) -> Top:
    """Return the most probable classes with the edits applied to the whole network at once."""
    applied: list[Edit] = []
    try:
        for edit in edits:
            edit.apply_(hooked)
            applied.append(edit)
        probabilities, indices = hooked(image[None]).softmax(1)[0].topk(TOP)
    finally:
        for edit in applied:
            edit.revert_(hooked)
    return [
        (names[index], value)
        for value, index in zip(probabilities.tolist(), indices.tolist(), strict=True)
    ]


def _shared(
    experiment: Experiment, edit: Edit, subject: Subject, names: Sequence[str], path: Path
) -> str:
    """Save the edit and prove that what is read back does and undoes the same."""
    assessment = assess(
        experiment.hooked, edit, experiment.test, dictionary=experiment.dictionary, classes=names
    )
    artifact = EditArtifact.of(
        experiment.hooked,
        edit,
        dictionary=experiment.dictionary,
        alpha_crit=alpha_crit(experiment.hooked, edit, experiment.test, target="flip"),
        assessment=assessment,
        labels=names,
        data={"images": experiment.test.n_images},
        pictures=grad_fam_pictures(
            experiment.hooked,
            experiment.dictionary,
            edit,
            subject.image[None],
            names=[f"{subject.name} ({path.name})"],
        ),
    )
    artifact.save_pretrained(path)
    loaded = EditArtifact.from_pretrained(path)
    state = {key: value.clone() for key, value in experiment.hooked.model.state_dict().items()}
    with loaded.edit.applied(experiment.hooked):
        pass
    restored = experiment.hooked.model.state_dict()
    if loaded.digest != artifact.digest or any(
        not torch.equal(value, restored[key]) for key, value in state.items()
    ):
        raise SalveError(f"the artifact in {path} did not survive its round trip; report a bug")
    return artifact.digest
