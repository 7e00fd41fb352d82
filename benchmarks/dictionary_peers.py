"""The peers' side of benchmarks/dictionaries.py; runs in each peer's own environment.

    python dictionary_peers.py PEER     with jobs on stdin and reports on stdout, JSON, one a line

Each peer trains as its documentation shows, one thread, float32, fed with batches by indexing one
tensor (which is faster than the data loaders that some of them show). Its documented learning rate
is multiplied by the job's factor. Warm-ups that are given in steps and would outlast so short a
run take 5 % of it. All weigh ‖x − x̂‖² + λ ‖z‖₁ per row; λ is converted to each one's own unit.

overcomplete: `train_sae` itself, without its optional monitoring (`monitoring=0`), with Adam and
    the criterion of its README (TopK) or its own `mse_l1`; 5e-4.
sae-lens: `SAETrainer.fit` itself, without logging; 3e-4; TopK with its sparse activations, which
    are faster, and which torch can only differentiate if activations are not rescaled by the norms
    of atoms (`rescale_acts_by_decoder_norm=False`); R² was the same with and without.
dictionary-learning: `StandardTrainer.update` and `TopKTrainer.update`, on rows with mean squared
    norm 1 as `trainSAE(normalize_activations=True)` makes them; 1e-3, or the trainer's own rate.
saev: its model, loss, projection and renormalization in the order of its `train`, which itself
    only reads shards of a vision transformer; fused Adam as there; 4e-4. No TopK in 0.1.0.
eai-sparsify: its model, loss and projections in the order of `Trainer.fit`, which itself only
    runs with a language model; sign descent, schedule-free, as is its default; its own rate. It has
    no ReLU-l1.
"""

import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From rows (rows, width) to their codes (rows, latents) and reconstructions (rows, width)."""

WARM_UP = 0.05


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        data: file with the tensors "train" and "test", rows centred, mean squared norm = width.
        learner: "topk" or "relu_l1".
        n_latents: number of latents.
        k: active latents of a row, for TopK.
        weight: λ of the l1 norm.
        factor: multiplies the documented learning rate.
        steps: optimizer steps.
        untimed: how many of them pass before the clock starts.
        batch_size: rows in a step.
        seed: of initial weights and of the order of the rows.
        quality: whether to measure that, too.
        initialization: of this package's atoms; peers start as they do.
    """

    data: str
    learner: str
    n_latents: int
    k: int
    weight: float
    factor: float
    steps: int
    untimed: int
    batch_size: int
    seed: int
    quality: bool = True
    initialization: str = "rows"

    @property
    def warm_up(self) -> int:
        """Steps of a warm-up."""
        return max(1, int(WARM_UP * self.steps))


@dataclass(frozen=True)
class Report:
    """What came of a job.

    Attributes:
        speed: rows per second of CPU time, without the untimed steps: what happens only once does
            not count, and what sets in only after a pass over the data does.
        rate: the learning rate.
        r2: on test rows.
        l0: active latents of a test row.
        dead: share of the latents that no training row activates.
    """

    speed: float
    rate: float
    r2: float = math.nan
    l0: float = math.nan
    dead: float = math.nan


class UnsupportedError(Exception):
    """The peer has no such learner."""


class Batches:
    """Shuffled batches, and the time that training on them takes.

    Attributes:
        rows: the training rows.
    """

    def __init__(self, rows: Tensor, job: Job) -> None:
        """Start before the first epoch."""
        self.rows, self._job, self._given = rows, job, 0
        self._random = torch.Generator().manual_seed(job.seed)
        self._order = torch.randperm(len(rows), generator=self._random)
        self._started = self._stopped = 0.0

    def __iter__(self) -> "Batches":
        """Return itself: it can be gone through once."""
        return self

    def __next__(self) -> Tensor:
        """Return the next batch; the clock starts after the untimed ones."""
        size = self._job.batch_size
        if self._given == self._job.steps:
            raise StopIteration
        per_epoch = len(self.rows) // size
        place = self._given % per_epoch
        if place == 0 and self._given:
            self._order = torch.randperm(len(self.rows), generator=self._random)
        if self._given == self._job.untimed:
            self._started = time.process_time()
        self._given += 1
        return self.rows[self._order[place * size : (place + 1) * size]]

    def stop(self) -> None:
        """Stop the clock."""
        self._stopped = time.process_time()

    @property
    def speed(self) -> float:
        """Rows per second."""
        rows = (self._given - self._job.untimed) * self._job.batch_size
        return rows / (self._stopped - self._started)


Train = Callable[[Job, Batches], tuple[float, Reconstruct]]
"""Trains, stops the clock, and returns the learning rate and what was trained."""


def overcomplete(job: Job, batches: Batches) -> tuple[float, Reconstruct]:
    """Train with overcomplete."""
    sae = import_module("overcomplete.sae")
    width, rate = batches.rows.shape[1], 5e-4 * job.factor
    if job.learner == "topk":
        model = sae.TopKSAE(width, nb_concepts=job.n_latents, top_k=job.k)

        def criterion(x: Tensor, x_hat: Tensor, *_: Tensor) -> Tensor:
            return (x - x_hat).square().mean()
    else:
        model = sae.SAE(width, job.n_latents)
        # Its errors are means over rows and features, its l1 norm a sum over rows and latents.
        criterion = partial(sae.mse_l1, penalty=job.weight / (job.batch_size * width))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    sae.train_sae(model, batches, criterion, optimizer, nb_epochs=1, monitoring=0)
    batches.stop()
    model.eval()
    return rate, lambda x: model(x)[1:]


def sae_lens(job: Job, batches: Batches) -> tuple[float, Reconstruct]:
    """Train with SAELens."""
    lens, trainer = import_module("sae_lens"), import_module("sae_lens.training.sae_trainer")
    configuration = import_module("sae_lens.config")
    shape: dict[str, Any] = {"d_in": batches.rows.shape[1], "d_sae": job.n_latents}
    if job.learner == "topk":
        sparse = {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
        model = lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(**shape, **sparse, k=job.k))
    else:
        options = lens.StandardTrainingSAEConfig(**shape, l1_coefficient=job.weight)
        model = lens.StandardTrainingSAE(options)
    settings = configuration.SAETrainerConfig(
        total_training_samples=job.steps * job.batch_size,
        train_batch_size_samples=job.batch_size,
        lr=3e-4 * job.factor,
        lr_end=3e-4 * job.factor,
    )
    trainer.SAETrainer(settings, model, data_provider=batches).fit()
    batches.stop()

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        code = model.encode(x)
        return code.to_dense(), model.decode(code)

    return settings.lr, reconstruct


def dictionary_learning(job: Job, batches: Batches) -> tuple[float, Reconstruct]:
    """Train with dictionary-learning."""
    trainers = import_module("dictionary_learning.trainers")
    width = batches.rows.shape[1]
    scale = width**0.5
    options: dict[str, Any] = {
        "steps": job.steps,
        "activation_dim": width,
        "dict_size": job.n_latents,
        "layer": 0,
        "lm_name": "",
        "warmup_steps": job.warm_up,
        "seed": job.seed,
        "device": "cpu",
    }
    if job.learner == "topk":
        rate = 2e-4 / (job.n_latents / 2**14) ** 0.5 * job.factor
        trainer = trainers.TopKTrainer(**options, k=job.k, lr=rate)
    else:
        rate, weight = 1e-3 * job.factor, job.weight / scale
        options |= {"l1_penalty": weight, "sparsity_warmup_steps": job.warm_up}
        trainer = trainers.StandardTrainer(**options, lr=rate)
    batches.rows = batches.rows / scale
    for step, rows in enumerate(batches):
        trainer.update(step, rows)
    batches.stop()

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, code = trainer.ae(x / scale, output_features=True)
        return code, rows * scale

    return rate, reconstruct


def saev(job: Job, batches: Batches) -> tuple[float, Reconstruct]:
    """Train with saev."""
    if job.learner == "topk":
        raise UnsupportedError("version 0.1.0 has no TopK")
    network, config = import_module("saev.nn"), import_module("saev.config")
    width, rate = batches.rows.shape[1], 4e-4 * job.factor
    settings = config.SparseAutoencoder(
        d_vit=width,
        exp_factor=job.n_latents // width,
        # Its errors are means over features.
        sparsity_coeff=job.weight / width,
        n_reinit_samples=len(batches.rows),
        seed=job.seed,
    )
    model = network.SparseAutoencoder(settings)
    model.init_b_dec(batches.rows)
    optimizer = torch.optim.Adam([{"params": model.parameters(), "lr": 0.0}], fused=True)
    for step, rows in enumerate(batches):
        model.normalize_w_dec()
        _, _, loss = model(rows)
        loss.loss.backward()
        model.remove_parallel_grads()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / job.warm_up)
        optimizer.zero_grad()
    batches.stop()

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        rows, code, _ = model(x)
        return code, rows

    return rate, reconstruct


def sparsify(job: Job, batches: Batches) -> tuple[float, Reconstruct]:
    """Train with eai-sparsify."""
    if job.learner != "topk":
        raise UnsupportedError("it has TopK only, no ReLU-l1")
    config, coder = import_module("sparsify.config"), import_module("sparsify.sparse_coder")
    sign, free = import_module("sparsify.sign_sgd"), import_module("schedulefree")
    rate = 5e-3 / (job.n_latents / 2**14) ** 0.5 * job.factor
    settings = config.SparseCoderConfig(num_latents=job.n_latents, k=job.k)
    model = coder.SparseCoder(batches.rows.shape[1], settings, dtype=torch.float32)
    inner = sign.SignSGD([{"params": model.parameters(), "lr": rate}])
    optimizer = free.ScheduleFreeWrapper(inner, momentum=0.95)
    optimizer.train()
    torch.set_float32_matmul_precision("high")  # as its trainer does
    silent = torch.zeros(job.n_latents, dtype=torch.long)
    fired = torch.zeros(job.n_latents, dtype=torch.bool)
    for step, rows in enumerate(batches):
        if step == 0:
            model.b_dec.data = rows.mean(0)
        model.set_decoder_norm_to_unit_norm()
        out = model(rows, total_variance=(rows - rows.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        silent += len(rows)
        silent[fired] = 0
        fired.zero_()
    batches.stop()
    optimizer.eval()
    torch.set_float32_matmul_precision("highest")

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        values, latents, pre = model.encode(x)
        code = torch.zeros_like(pre).scatter(1, latents, values)
        return code, model.decode(values, latents)

    return rate, reconstruct


PEERS: dict[str, Train] = {
    "overcomplete": overcomplete,
    "sae-lens": sae_lens,
    "dictionary-learning": dictionary_learning,
    "saev": saev,
    "eai-sparsify": sparsify,
}


def measure(train: Train, job: Job) -> Report:
    """Train, then measure quality, for everyone in the same way."""
    data: dict[str, Tensor] = torch.load(job.data, weights_only=True)
    torch.manual_seed(job.seed)
    gc.collect()
    batches = Batches(data["train"], job)
    rate, reconstruct = train(job, batches)
    if not job.quality:
        return Report(batches.speed, rate)
    return Report(batches.speed, rate, *quality(reconstruct, data["train"], data["test"]))


@torch.no_grad()
def quality(
    reconstruct: Reconstruct, train: Tensor, test: Tensor, size: int = 1000
) -> tuple[float, float, float]:
    """Return R² and L0 on test rows and the share of latents that no training row activates."""
    error, active = 0.0, 0
    for rows in torch.split(test, size):
        code, rebuilt = reconstruct(rows)
        error += float((rows - rebuilt).square().sum())
        active += int((code != 0).sum())
    parts = torch.split(train, size)
    alive = torch.stack([(reconstruct(rows)[0] != 0).any(0) for rows in parts]).any(0)
    spread = float((test - test.mean(0)).square().sum())
    return 1 - error / spread, active / len(test), 1 - float(alive.double().mean())


def serve(measured: Callable[[Job], Report], distribution: str) -> None:
    """Answer jobs from stdin on stdout; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    answers.write(json.dumps({"version": version(distribution), "torch": torch.__version__}) + "\n")
    for line in sys.stdin:
        try:
            answer = asdict(measured(Job(**json.loads(line))))
        except UnsupportedError as reason:
            answer = {"absent": str(reason)}
        except Exception as error:
            # A peer that fails must not end the benchmark, but be reported with its reason.
            answer = {"absent": f"{type(error).__name__}: {error}".partition("\n")[0][:200]}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    serve(partial(measure, PEERS[sys.argv[1]]), sys.argv[1])
