"""Dead latents start anew, the living are left alone, and Adam forgets the dead only."""

import torch
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.learners.base import Start, Tensors
from salve_plugin.discover.learners.gated import Gated
from salve_plugin.discover.learners.relu_l1 import ReluL1
from salve_plugin.discover.training.revival import ENCODER_SHARE, revive


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


def test_atoms_that_are_not_trained_stay_and_the_encoder_starts_along_them() -> None:
    t, optimizer, rows = trained()
    t["atoms"].requires_grad_(False)
    before = t["atoms"].clone()
    dead = torch.tensor([False, True, False, False, True, False])
    with torch.no_grad():
        revive(ReluL1(), t, optimizer, rows, dead, torch.Generator().manual_seed(1))
    assert torch.equal(t["atoms"], before)
    along = torch.cosine_similarity(t["encoder_weight"][dead], before[dead])
    torch.testing.assert_close(along.detach(), torch.ones(2))


def test_a_latent_that_its_own_bias_silenced_can_be_active_again() -> None:
    random = torch.Generator().manual_seed(0)
    atoms = functional.normalize(torch.randn(6, 4, generator=random), dim=1)
    t = Gated().prepare(Start(atoms, atoms, 0.8, random))
    optimizer, rows = torch.optim.Adam(t.values()), torch.randn(30, 4, generator=random)
    dead = torch.tensor([True, False, False, False, False, False])
    with torch.no_grad():
        t["magnitude_bias"][:2] = -50.0
        revive(Gated(), t, optimizer, rows, dead, random)
        active = (Gated().encode(t, rows) > 0).any(0)
    assert active.tolist() == [True, False, True, True, True, True]


def test_a_row_at_the_mean_gives_no_direction_and_is_not_taken() -> None:
    t, optimizer, rows = trained()
    rows[1:] = 0
    with torch.no_grad():
        t["decoder_bias"][:] = 5.0  # so that the rows at the mean are reconstructed badly
        revive(ReluL1(), t, optimizer, rows, torch.ones(6, dtype=torch.bool), torch.Generator())
    expected = functional.normalize(rows[:1], dim=1).expand(6, 4)
    torch.testing.assert_close(t["atoms"].detach(), expected)


def test_nothing_happens_without_dead_latents_or_without_error() -> None:
    t, optimizer, rows = trained()
    before = {name: value.detach().clone() for name, value in t.items()}
    none, everyone = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        revive(ReluL1(), t, optimizer, rows, none, torch.Generator())
        assert all(torch.equal(value, before[name]) for name, value in t.items())
        for name in ("encoder_weight", "encoder_bias", "decoder_bias"):
            t[name].zero_()
        atoms = t["atoms"].clone()
        revive(ReluL1(), t, optimizer, torch.zeros(5, 4), everyone, torch.Generator())
    assert torch.equal(t["atoms"], atoms)
    assert not t["encoder_weight"].any()
