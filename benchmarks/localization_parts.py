"""Synthetic pictures: parts at known places, a small network that tells which there are."""

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

import salve_plugin as salve
from benchmarks.localization_scores import MEASURES, on_grid, scores

SIDE, PART, CELL = 64, 14, 16
"""Pixels of a picture, of a part, and of the cells in which parts lie, one each."""


def shapes() -> Tensor:
    """Return the parts, (6, 14, 14) in [0, 1]: disc, ring, cross, two gratings, chequers."""
    y, x = torch.meshgrid(*[torch.arange(PART) - (PART - 1) / 2] * 2, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    cross = (x.abs() < 2) | (y.abs() < 2)
    drawn = [radius < 6, (radius < 7) & (radius > 4), cross, (y // 2) % 2 == 0, (x // 2) % 2 == 0]
    return torch.stack([*drawn, ((x // 3) + (y // 3)) % 2 == 0]).float()


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return pictures (count, 1, 64, 64) and masks of each part (count, parts, 64, 64).

    Every part is there in half of the pictures, in a cell of its own, on noise.
    """
    random, parts = torch.Generator().manual_seed(seed), shapes()
    images = 0.2 * torch.randn(count, 1, SIDE, SIDE, generator=random)
    masks = torch.zeros(count, len(parts), SIDE, SIDE, dtype=torch.bool)
    across = SIDE // CELL
    for number in range(count):
        cells = torch.randperm(across**2, generator=random)[: len(parts)].tolist()
        present = torch.rand(len(parts), generator=random) < 0.5
        shift = torch.randint(0, CELL - PART + 1, (len(parts), 2), generator=random).tolist()
        for part in present.nonzero()[:, 0].tolist():
            top = cells[part] // across * CELL + shift[part][0]
            left = cells[part] % across * CELL + shift[part][1]
            own = (slice(top, top + PART), slice(left, left + PART))
            images[number, 0][own] += parts[part]
            masks[number, part][own] = True
    return images, masks


class Network(nn.Module):
    """Three convolutions, an average, a linear layer."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for inner, outer, kernel, stride in ((1, 16, 5, 2), (16, 32, 5, 2), (32, 64, 3, 1)):
            layers += [
                nn.Conv2d(inner, outer, kernel, stride, kernel // 2), nn.BatchNorm2d(outer),
                nn.ReLU(),
            ]  # fmt: skip
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(64, len(shapes()))

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each part."""
        logits: Tensor = self.fc(self.body(x).mean((2, 3)))
        return logits


def trained(steps: int) -> Network:
    """Return a network that tells which parts are in a picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    optimizer = torch.optim.Adam(network.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    images, masks = drawn(32 * min(steps, 64), seed=0)
    present = masks.flatten(2).any(2).float()
    for step in range(steps):
        rows = torch.arange(32) + 32 * (step % (len(images) // 32))
        loss = functional.binary_cross_entropy_with_logits(network(images[rows]), present[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        rate.step()
    return network.eval().requires_grad_(False)


def parts_table(*, steps: int) -> list[str]:
    """Return a markdown table of how well each part's latent points at it in new pictures."""
    network = trained(steps)
    body = salve.Site("blocks.2.hook_resid_post", "body", "out", "nchw", 64)
    head = salve.Site("unembed.hook_in", "fc", "in", "pooled", 64, readers=("fc",))
    hooked = salve.HookedModel(network, [body, head], attribution_site=body, description={})
    images, masks = drawn(256, seed=1)
    _, cache = hooked.run_with_cache(images, names_filter=body.name)
    rows = cache[body.name].movedim(1, 3).reshape(-1, 64)[::4]
    sae = salve.fit(rows, "topk", n_latents=64, k=4, seed=0, learning_rate=1e-3, site=body)
    present = masks.flatten(2).any(2)
    loader = [(images[own], torch.full((int(own.sum()),), part)) for part, own in
              enumerate(present.T)]  # fmt: skip
    effects = salve.class_effects(hooked, sae, loader, candidates=4, on_base_mismatch="warn")
    tested, masks = drawn(128, seed=2)
    present = masks.flatten(2).any(2)
    measured: dict[str, list[Tensor]] = {}
    for part, own in enumerate(present.T):
        x, mask = tested[own], on_grid(masks[own, part])
        latent = effects.ranked(part, 1)[0]
        maps = {
            "codes of the part's latent": _of(salve.LayerCodeMap, hooked, sae).attribute(x, latent),
            "Grad-FAM of the part's latent": _of(salve.LayerGradFam, hooked, sae).attribute(
                x, latent
            ),
            "codes, 10 latents": _of(salve.LayerCodeMap, hooked, sae).attribute(
                x, salve.contribution(part)
            ),
            "Grad-CAM": LayerGradCam(network, network.body).attribute(x, part).detach(),
        }
        for name, heat in maps.items():
            measured.setdefault(name, []).append(scores(heat[:, 0], mask))
    accuracy = float(((network(tested) > 0) == present).float().mean())
    lines = [f"the network tells a part's presence with accuracy {accuracy:.3f}\n"]
    lines += ["| map | " + " | ".join(MEASURES) + " |", "|---|" + "---:|" * len(MEASURES)]
    for name, values in measured.items():
        means = torch.cat(values).mean(0).tolist()
        lines.append(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return lines


def _of(
    kind: type[salve.LayerGradFam], hooked: salve.HookedModel, sae: salve.Dictionary
) -> salve.LayerGradFam:
    return kind.of(hooked, sae)
