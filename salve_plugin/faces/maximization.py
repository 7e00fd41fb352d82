"""The figure of an activation maximization: the image, and how it came about."""

from typing import TYPE_CHECKING

from salve_plugin.faces.drawing import Drawing

if TYPE_CHECKING:
    from salve_plugin.validate.maximization import Maximization


def maximization_figure(found: "Maximization") -> Drawing:
    """Draw the image beside the latent's activation at each step; see `Maximization.figure`."""
    figure = Drawing((8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    channels = len(found.image)
    pixels = found.image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    # Of other numbers of channels no colours can be made: their mean is shown.
    grey = channels != 3
    left.imshow(pixels.mean(2) if grey else pixels, cmap="gray" if grey else None, vmin=0, vmax=1)
    left.set_axis_off()
    verb = "maximizes" if found.sign > 0 else "minimizes"
    mean = f", mean of {channels} channels" if channels not in (1, 3) else ""
    left.set_title(f"{verb} latent {found.latent}{mean}", fontsize="medium")
    right.plot(found.activations.numpy(), color="black", linewidth=1.5, label="at each step")
    right.plot(
        [len(found.activations)], [found.activation], "k*", markersize=11,
        label=f"the image: {found.activation:.3g}",
    )  # fmt: skip
    centre, spread = float(found.noise.mean()), float(found.noise.std())
    right.axhline(centre, color="#555555", linestyle="--", linewidth=1)
    right.axhspan(
        centre - spread, centre + spread, color="#d9d9d9", linewidth=0,
        label=f"{len(found.noise)} random images: {centre:.3g} ± {spread:.2g}",
    )  # fmt: skip
    right.set_xlabel("step of ascent")
    right.set_ylabel("pre-activation of the latent\n(in units of the activation)")
    right.legend(fontsize="small", frameon=False)
    return figure
