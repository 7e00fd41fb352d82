"""The story of docs/watermark.md: find a shortcut in photographs, remove it, look at what is left.

    python benchmarks/watermark_story.py        # prints the page's numbers, writes its pictures

The photograph that is shown, and the phrase on it, are not among those that the edit is made from.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import salve_plugin as salve
from salve_plugin.control.edit import Edit
from salve_plugin.demo import pretrained

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.watermark_pictures import COLOUR, Pictures, logits, marked, same

SHOWN = COLOUR.index("rocket.jpg")
PHRASE, FITTED = "cjk_0", ("cjk_1", "cjk_2", "cjk_3", "cjk_4")
OVERLAYS = {
    "Chinese, new": PHRASE,
    "Latin": "latin_0",
    "thin Latin": "thin_0",
    "digits": "digits_0",
}
CROPS = 4
"""Of each photograph; the edit sees 8 + 10 photographs, one phrase on each crop."""

PICTURES = Path(__file__).parents[1] / "docs" / "watermark"


@dataclass(frozen=True)
class Scene:
    """What the story is about.

    Attributes:
        images: crops that the edit is made from, in [-1, 1].
        with_text: the same with a phrase on each.
        labels: what the network sees in the clean crops.
        photographs: which photograph each crop is of.
        unseen: crops of the photograph left out, in [0, 1].
    """

    images: Tensor
    with_text: Tensor
    labels: Tensor
    photographs: Tensor
    unseen: Tensor


def scene(network: nn.Module) -> Scene:
    """Return crops of the packaged photographs, one photograph left out."""
    pictures = Pictures.packaged()
    number = torch.cat([torch.arange(int(n)) for n in torch.bincount(pictures.photograph)])
    fit = (pictures.photograph != SHOWN) & (number < CROPS)
    clean = pictures.images[fit]
    texts = [marked(image[None], FITTED[i % len(FITTED)]) for i, image in enumerate(clean)]
    with torch.no_grad():
        labels = network(2 * clean - 1).argmax(1)
    return Scene(
        2 * clean - 1,
        2 * torch.cat(texts) - 1,
        labels,
        pictures.photograph[fit],
        pictures.images[pictures.photograph == SHOWN],
    )


def find_and_remove(network: nn.Module, seen: Scene) -> tuple[salve.Concept, Edit]:
    """Return the concept that tells crops with text from those without, and the edit."""
    images, with_text = seen.images, seen.with_text
    labels, photographs = seen.labels, seen.photographs
    # --8<-- [start:find]
    hooked = salve.attach(network)
    site = "blocks.6.hook_resid_post"  # the last map before the head's 1x1 convolution
    with_acts = salve.record(hooked, [(with_text, labels)], site, progress=False)
    without_acts = salve.record(hooked, [(images, labels)], site, progress=False)
    concept = salve.find_concept(
        with_acts,
        without=without_acts,  # crop i of both is a pair
        groups=torch.cat([photographs, photographs]),
        name="Chinese text",
    )
    # --8<-- [end:find]
    # --8<-- [start:remove]
    edit = salve.erase(hooked, concept, "repair", rank=2, role="writer")
    # --8<-- [end:remove]
    return concept, edit


def before_and_after(network: nn.Module, edit: Edit, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of images in [0, 1] without and with the edit, reverted afterwards."""
    before = logits(network, images)
    # --8<-- [start:apply]
    edit.apply_(network)
    # --8<-- [end:apply]
    after = logits(network, images)
    edit.revert_(network)
    return before, after


def main() -> None:
    """Print the numbers and write the pictures."""
    torch.set_num_threads(1)
    network, names = pretrained.load_network(), pretrained.class_names()
    carton = names.index("carton")
    seen = scene(network)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    concept, edit = find_and_remove(network, seen)
    evidence = concept.evidence
    assert evidence is not None
    assert edit.exactness is not None
    print(
        f"concept: AUC {evidence.auc:.3f} ({evidence.auc_low:.3f} to {evidence.auc_high:.3f}), "
        f"chance {evidence.null_auc:.3f}, {evidence.n_with} crops with and without"
    )
    print(
        f"edit: differs from a hook by {edit.exactness.difference:.1e}, "
        f"has an effect of {edit.exactness.effect:.1e}"
    )
    clean_before, clean_after = before_and_after(network, edit, seen.unseen)
    print(f"clean: first class kept {same(clean_before, clean_after):.3f}")
    rises = {}
    for title, overlay in OVERLAYS.items():
        before, after = before_and_after(network, edit, marked(seen.unseen, overlay))
        rise = [
            float((shown - clean)[:, carton].mean())
            for shown, clean in ((before, clean_before), (after, clean_after))
        ]
        rises[title] = rise
        print(
            f"{title}: carton rises by {rise[0]:.2f}, edited {rise[1]:.2f}; agrees with clean "
            f"{same(before, clean_before):.3f}, edited {same(after, clean_before):.3f}"
        )
    one = marked(seen.unseen[:1], PHRASE)
    before, after = before_and_after(network, edit, one)
    for title, values in (("before", before), ("after", after), ("clean", clean_before[:1])):
        top = values[0].softmax(0).topk(3)
        cells = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        print(f"{title}: " + ", ".join(f"{names[label]} {p:.3f}" for label, p in cells))
    reverted = all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    print(f"reverted bit for bit: {reverted}")
    PICTURES.mkdir(exist_ok=True)
    draw_photograph(one[0], [clean_before[0], before[0], after[0]], names)
    draw_rises(rises)


def draw_photograph(image: Tensor, logits_of: list[Tensor], names: list[str]) -> None:
    """Write the marked photograph beside the probabilities without text, with it, and edited."""
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), width_ratios=(1, 1.7))
    left.imshow(image.movedim(0, -1).numpy())
    left.set_axis_off()
    first = {label for values in logits_of for label in values.topk(2).indices.tolist()}
    shown = sorted({*first, names.index("carton")}, key=lambda label: -float(logits_of[0][label]))
    height = torch.arange(len(shown)).flip(0).numpy()
    bars = zip(
        (0.27, 0, -0.27), logits_of, ("without the text", "with it", "with it, edited"),
        ("tab:gray", "tab:red", "tab:blue"), strict=True,
    )  # fmt: skip
    for offset, values, title, colour in bars:
        width = values.softmax(0)[shown].numpy()
        right.barh(height + offset, width, 0.27, color=colour, label=title)
    right.set_yticks(height, [names[label] for label in shown])
    right.set_xlabel("probability")
    right.legend(frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    save(figure, "photograph.png")


def draw_rises(rises: dict[str, list[float]]) -> None:
    """Write how far each kind of text raises carton, before and after."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 2.2))
    height = torch.arange(len(rises)).flip(0).numpy()
    for side, title, colour in ((0, "before", "tab:red"), (1, "after", "tab:blue")):
        values = [pair[side] for pair in rises.values()]
        axes.barh(height + 0.2 - 0.4 * side, values, 0.4, color=colour, label=title)
    axes.set_yticks(height, list(rises))
    axes.set_xlabel("rise of carton's logit")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, "rises.png")


def save(figure: object, name: str) -> None:
    """Write a figure with few colours: a picture of a page need not be large."""
    from io import BytesIO

    from matplotlib.figure import Figure
    from PIL import Image

    assert isinstance(figure, Figure)
    figure.tight_layout()
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    with Image.open(stream) as picture:
        picture.convert("RGB").quantize(128).save(PICTURES / name, optimize=True)
    print(f"{name}: {(PICTURES / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
