"""Dead latents start anew, the living are left alone, and Adam forgets the dead only."""

import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Start, Tensors
from salve_plugin.discover.learners.relu_l1 import ReluL1
from salve_plugin.discover.revival import ENCODER_SHARE, revive


def trained() -> tuple[Tensors, torch.optim.Adam, Tensor]:
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(6, 4, generator=random), dim=1)
    t = ReluL1().prepare(Start(atoms, atoms, 0.8, random))
    optimizer = torch.optim.Adam(t.values(), fused=True)
    rows = torch.randn(30, 4, generator=random)
    (ReluL1().encode(t, rows) @ t["atoms"]).square().sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    optimizer.step()
    optimizer.zero_grad()
    return t, optimizer, rows


def test_dead_latents_take_directions_of_rows_and_the_living_stay() -> None:
    t, optimizer, rows = trained()
    before = {name: value.detach().clone() for name, value in t.items()}
    moments = {
        name: optimizer.state[t[name]]["exp_avg"].clone() for name in ("atoms", "encoder_bias")
    }
    dead = torch.tensor([False, True, False, False, True, False])
    with torch.no_grad():
        revive(ReluL1(), t, optimizer, rows, dead, torch.Generator().manual_seed(1))
    directions = functional.normalize(rows, dim=1)
    living = before["encoder_weight"][~dead].norm(dim=1).mean()
    for latent in (1, 4):
        match = (directions @ t["atoms"][latent]).argmax()
        torch.testing.assert_close(t["atoms"][latent], directions[match])
        torch.testing.assert_close(
            t["encoder_weight"][latent], ENCODER_SHARE * living * directions[match]
        )
        assert float(t["encoder_bias"][latent].detach()) == 0
    for name, value in t.items():
        if name != "decoder_bias":
            assert torch.equal(value[~dead], before[name][~dead])
    for name, moment in moments.items():
        now = optimizer.state[t[name]]["exp_avg"]
        assert torch.equal(now[~dead], moment[~dead])
        assert not now[dead].any()


def test_rows_are_drawn_in_proportion_to_their_error() -> None:
    t, optimizer, _ = trained()
    rows = torch.zeros(50, 4)
    rows[7] = torch.tensor([3.0, 0.0, 0.0, 0.0])  # the only row with an error
    with torch.no_grad():
        for name in ("encoder_weight", "encoder_bias", "decoder_bias"):
            t[name].zero_()
        revive(ReluL1(), t, optimizer, rows, torch.ones(6, dtype=torch.bool), torch.Generator())
    torch.testing.assert_close(t["atoms"].detach(), torch.eye(4)[0].expand(6, 4))


def test_nothing_happens_without_dead_latents_or_without_error() -> None:
    t, optimizer, rows = trained()
    before = {name: value.detach().clone() for name, value in t.items()}
    none, everyone = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        revive(ReluL1(), t, optimizer, rows, none, torch.Generator())
        code = ReluL1().encode(t, rows)
        revive(ReluL1(), t, optimizer, ReluL1().decode(t, code) * 0, none, torch.Generator())
    assert all(torch.equal(value, before[name]) for name, value in t.items())
    assert everyone.any()
