"""The figure of a profile: the mean codes of classes in the latents that tell them apart."""

from typing import TYPE_CHECKING

from salve_plugin.faces.drawing import SEQUENTIAL, Drawing, label

if TYPE_CHECKING:
    from salve_plugin.discover.features import Features

MOST_CLASSES, MOST_LATENTS = 30, 40


def features_figure(features: "Features") -> Drawing:
    """Draw the mean code of each class for the latents that matter to one; see `Features.figure`.

    Shown are each class's dominant latent and, as far as there is room, its most specific ones.
    """
    classes = [at for at, count in enumerate(features.counts.tolist()) if count][:MOST_CLASSES]
    dominant = {at: features.dominant(at) for at in classes}
    # All first ones, then all second ones: no class is left out for another's third.
    ranked = zip(*(features.ranked(at, 3) for at in classes), strict=True)
    specific = [latent for nth in ranked for latent in nth]
    # Dominant ones first, so that the cut takes specific ones; then in order, to be found.
    latents = sorted(list(dict.fromkeys([*dominant.values(), *specific]))[:MOST_LATENTS])
    codes = features.means[classes][:, latents]
    figure = Drawing(
        (2.4 + 0.28 * max(8, len(latents)), 1.5 + 0.26 * max(4, len(classes))),
        layout="constrained",
    )
    axes = figure.add_subplot()
    largest = float(codes.abs().max()) or 1.0
    # Codes may have either sign: then the scale is symmetric, so that zero is always its middle.
    least = -largest if bool((codes < 0).any()) else 0.0
    image = axes.imshow(codes.numpy(), cmap=SEQUENTIAL, vmin=least, vmax=largest, aspect="auto")
    for row, at in enumerate(classes):
        if dominant[at] in latents:
            axes.text(
                latents.index(dominant[at]), row, "★", ha="center", va="center", fontsize=9,
                color="white", path_effects=_outline(),
            )  # fmt: skip
    axes.set_xticks(range(len(latents)), list(map(str, latents)), fontsize="small", rotation=90)
    axes.set_yticks(
        range(len(classes)), [label(features.name_of(at)) for at in classes], fontsize="small"
    )
    more = len(features.counts) - len(classes)
    rest = f" ({more} more are not shown)" if more else ""
    axes.set_xlabel(f"latent, of {features.means.shape[1]} (★ dominant in its class)")
    axes.set_ylabel(("value of the attribute" if features.of_attribute else "class") + rest)
    figure.colorbar(image, ax=axes, label="mean code (in units of the activation)")
    return figure


def _outline() -> list[object]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2, foreground="black")]
