"""The one training loop of all learners that have gradients."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from salve_plugin.discover.kernels.scratch import Scratch
from salve_plugin.discover.learners.base import Learner, Outcome, Step, Tensors
from salve_plugin.discover.recording.team import Team
from salve_plugin.discover.training.plan import Plan
from salve_plugin.discover.training.revival import revive
from salve_plugin.discover.training.schedule import L0Control, decay_start, rate_share
from salve_plugin.errors import InputError

SEED_STRIDE = 1_000_003
"""Runs with neighbouring seeds must not share the randomness of a step."""

REVIVE_UNTIL = 0.6
"""Share of the steps after which dead latents are left alone: new ones could not settle."""


class DivergedError(InputError):
    """The loss became NaN or infinite: the learning rate is too high."""


@dataclass
class State:
    """All that a run must remember to go on exactly as it would have.

    Attributes:
        tensors: of the learner; those that require grad are trained.
        optimizer: over the trained ones.
        learning_rate: its peak.
        silent: rows since each latent was last active (latents,).
        control: of L0.
        step: steps done.
        stop: number of steps at which the run ends; an early stop moves it.
        decay_from: step in which the decay of the learning rate begins.
        best: best held-out R² so far, and in which step: for stopping early.
    """

    tensors: Tensors
    optimizer: torch.optim.Optimizer
    learning_rate: float
    silent: Tensor
    control: L0Control
    step: int
    stop: int
    decay_from: int
    best: tuple[float, int] = field(default=(-math.inf, 0))

    @classmethod
    def fresh(cls, tensors: Tensors, plan: Plan, learning_rate: float) -> "State":
        """Return the state before the first step."""
        trained = [tensor for tensor in tensors.values() if tensor.requires_grad]
        return cls(
            tensors,
            # The fused form passes once over a parameter, its gradient and its moments; the others
            # make temporaries of its size.
            torch.optim.Adam(trained, fused=True),
            learning_rate,
            torch.zeros(len(tensors["atoms"]), dtype=torch.int64),
            L0Control(plan.target_l0),
            0,
            plan.steps,
            decay_start(plan.steps),
        )

    @property
    def trained(self) -> list[Tensor]:
        """The tensors that the optimizer moves."""
        return [tensor for tensor in self.tensors.values() if tensor.requires_grad]


@dataclass(frozen=True, eq=False)
class Done:
    """What one step did.

    Attributes:
        step: how many are done now.
        loss: over all processes' rows.
        l0: active latents of a row.
    """

    step: int
    loss: Tensor
    l0: float


def train(
    rule: Learner,
    state: State,
    batches: Iterator[Float[Tensor, "rows width"]],
    plan: Plan,
    *,
    team: Team,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Done]:
    """Minimize the learner's loss, keeping its constraints; yield after each step.

    Gradients of the atoms are projected to be orthogonal to them, so that bringing them back to
    unit norm undoes nothing (as in Bricken et al. 2023); then the norm of all gradients is clipped
    at 1, Adam steps, and the learner's constraints are restored.

    Args:
        rule: the learner.
        state: is moved on in place.
        batches: scaled rows of all processes together, from the step that `state` is at.
        plan: of the run.
        team: the processes that share the batches.
        gradient: from scaled rows to the gradient of the model's loss, for learners that use it.

    Raises:
        DivergedError: if the loss becomes NaN or infinite.
    """
    scratch = Scratch()
    while state.step < state.stop:
        rows = next(batches)
        scratch.restart()
        x = team.share(rows)
        step = Step(
            x,
            state.silent >= plan.patience,
            state.step / state.stop,
            state.control.weight,
            _random(plan, state.step),
            None if gradient is None else gradient(x),
            team,
            scratch,
        )
        outcome = _differentiated(rule, state, step, plan.autocast)
        # Before the optimizer moves: a checkpoint never holds what has diverged.
        lost = ~outcome.loss.detach().isfinite()
        # In all processes or in none: one that stops alone leaves the others waiting for it.
        if int(team.sum(lost.long())):
            raise DivergedError(
                f"the loss is {float(outcome.loss.detach())} in step {state.step}: learner "
                f"'{rule.name}' diverged at learning_rate {state.learning_rate:g}; choose a "
                "smaller one"
            )
        # Before they are projected and clipped: both then are the same in every process.
        team.average_gradients(state.trained)
        with torch.no_grad():
            _move(rule, state, plan)
            # Over all processes: silence, L0 control and revival must come out the same in each of
            # them.
            active = team.sum(outcome.active)
            n_rows = len(rows) - len(rows) % team.size  # the rest was left out by all processes
            state.silent += n_rows
            state.silent[active > 0] = 0
            l0 = float(active.sum()) / n_rows
            state.step += 1
            progress = state.step / state.stop
            state.control.observe(l0, progress)
            if rule.revived and progress < REVIVE_UNTIL and state.step % plan.revive_every == 0:
                # From all processes' rows and a generator that all seed alike: they stay equal.
                dead = state.silent >= plan.patience
                revive(rule, state.tensors, state.optimizer, rows, dead, _random(plan, state.step))
                # They count as dead again only after another epoch of silence.
                state.silent[dead] = 0
        yield Done(state.step, team.mean(outcome.loss.detach()), l0)


def _differentiated(rule: Learner, state: State, step: Step, autocast: bool) -> Outcome:
    """Compute the loss of this process's rows and its gradients."""
    with torch.autocast(step.x.device.type, torch.bfloat16, enabled=autocast):
        outcome = rule.loss(state.tensors, step)
    state.optimizer.zero_grad()
    outcome.loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    for tensor in state.trained:
        # Fused Adam updates wrongly from transposed gradients; a tensor that this batch did not
        # use must still take part in every process's exchange.
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous()
    return outcome


def _move(rule: Learner, state: State, plan: Plan) -> None:
    """Take one optimizer step along the averaged gradients."""
    atoms = state.tensors["atoms"]
    if atoms.requires_grad and atoms.grad is not None:
        # In parts that stay in the processor's cache.
        parts = zip(torch.split(atoms.grad, 256), torch.split(atoms, 256), strict=True)
        for gradient, direction in parts:
            # Atoms have unit norm, so that ⟨g, v⟩ v is the projection as it stands. It comes before
            # the clipping: what is taken out here must not count towards the norm.
            along = torch.linalg.vecdot(gradient, direction)
            gradient.addcmul_(direction, along[:, None], value=-1)
    gradients = [tensor.grad for tensor in state.trained if tensor.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    # `clip_grad_norm_` multiplies in every step, by 1 where there is nothing to clip: a pass over
    # all gradients.
    if norm > 1:
        torch._foreach_div_(gradients, norm)
    # Set anew in each step, instead of by a scheduler: an early stop moves the end.
    share = rate_share(state.step, state.stop, state.decay_from)
    state.optimizer.param_groups[0]["lr"] = state.learning_rate * share
    state.optimizer.step()
    rule.constrain(state.tensors)


def _random(plan: Plan, step: int) -> torch.Generator:
    # One for each step, not one for the run: a resumed run draws the same without its state.
    return torch.Generator().manual_seed(plan.seed * SEED_STRIDE + step)
