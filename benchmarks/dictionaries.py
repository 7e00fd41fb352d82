"""Training speed of dictionaries against five other packages: python benchmarks/dictionaries.py.

    python benchmarks/dictionaries.py [--latents 512 2048 8192] [--steps 300] [--repeats 3]
        [--learners topk relu_l1] [--factors 0.3 1 3 10 30] [--settings FILE]
        [--timed-steps 10] [--environments FOLDER] [--install]

Rows per second of CPU time (`time.process_time`) over --steps steps, one thread, float32, after one
pass over the data that is not timed: a latent counts as dead after a whole pass without activity,
so that only then does what is done about dead latents take its time. Batches of 1024 from the same
20 000 rows of width 512: sparse sums of 1024 planted atoms, 32 on average in a row, plus noise,
centred and scaled to mean squared norm 512. Everyone runs in a process of its own, in turns; the
table has the median of the repeats. R² and L0 are of 4096 other rows, "dead" is the share of
latents that none of the 20 000 rows activates. This package's `fit` keeps one row in ten from
training; the clock is around its loop.

Before the clock runs, everyone gets the learning rate, of its documented one times --factors, that
reaches the best R² with the fewest latents. This package has a choice of initializations, too, and
so tries fewer rates: all train equally often. For ReLU-l1 each try searches the weight of the l1
norm, by bisection, that gives the L0 of TopK at these numbers of latents and steps. --settings
keeps what was found, and how good it is, for the next run. With --timed-steps the clock of the
peers, whose steps all cost the same, runs over so many steps only; this package's, whose steps cost
more the more latents are dead, always runs over all of them. `dictionary_peers.py` says what each
peer runs. "One matmul" is x Eᵀ alone; "five matmuls" are all the products of a dense step.

Peers live in one virtual environment each, made by --install: it has the peer's own requirements
and, through a .pth file, sees the packages of the running environment, so that all use the same
torch and it is on disk once. A peer that is not there or fails is listed with the reason.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.dictionary_peers import Job, Report, UnsupportedError, quality, serve

REQUIREMENTS = {
    "overcomplete": ["overcomplete==0.3.0", "matplotlib<3.11"],
    "sae-lens": ["sae-lens==6.54.12", "transformer-lens<4"],
    "dictionary-learning": ["dictionary-learning==0.1.0"],
    "saev": ["saev==0.1.0"],
    "eai-sparsify": ["eai-sparsify==1.3.3"],
}
"""What each peer needs to be installed and to start."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "SPARSIFY_DISABLE_TRITON": "1",  # eai-sparsify would use it on a CPU too, and fail
    "WANDB_MODE": "disabled",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}

OURS, OURS_BF16 = "salve", "salve-bf16"
WIDTH, K, BATCH, ROWS, TEST_ROWS, PLANTED = 512, 32, 1024, 20_000, 4096, 1024
PASS = math.ceil(ROWS / BATCH)
"""Steps in one pass over the data."""

STARTS = ("rows", "random")
"""Initializations of this package's atoms that tuning chooses from; peers have only one."""

TRIES, CLOSE = 9, 0.05
"""Trainings that a bisection may use, and how close to the wanted L0 it may stop."""


def planted(seed: int) -> dict[str, Tensor]:
    """Return training and test rows: sparse non-negative sums of planted atoms, and noise."""
    random = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(PLANTED, WIDTH, generator=random), dim=1)
    n_rows = ROWS + TEST_ROWS
    on = torch.rand(n_rows, PLANTED, generator=random) < K / PLANTED
    codes = on * torch.randn(n_rows, PLANTED, generator=random).abs()
    rows = codes @ atoms + 0.02 * torch.randn(n_rows, WIDTH, generator=random)
    rows -= rows[:ROWS].mean(0)
    rows *= math.sqrt(WIDTH / float(rows[:ROWS].square().sum(1).mean()))
    return {"train": rows[:ROWS].clone(), "test": rows[ROWS:].clone()}


class AbsentError(Exception):
    """An implementation cannot take part, and why."""


class Contestant:
    """An implementation in a process of its own.

    Attributes:
        name: of the package.
        version: of the package, once started.
    """

    def __init__(self, name: str, command: list[str], errors: Path) -> None:
        """Remember how to start it, and where it may write what goes wrong."""
        self.name, self.version, self._command, self._errors = name, "?", command, errors
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: Job) -> Report:
        """Train and return what came of it.

        Raises:
            AbsentError: if it cannot.
        """
        process = self._started()
        try:
            print(json.dumps(asdict(job)), file=process.stdin, flush=True)
        except BrokenPipeError:
            raise AbsentError(self._last_words()) from None
        answer = self._answer(process)
        if "absent" in answer:
            raise AbsentError(str(answer["absent"]))
        return Report(**answer)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            if not Path(self._command[0]).exists():
                raise AbsentError(f"{self._command[0]} does not exist; run with --install")
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=os.environ | ENVIRONMENT,
                )
            greeting = self._answer(self._process)
            self.version = f"{greeting['version']}, torch {greeting['torch']}"
        return self._process

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AbsentError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return f"process ended: {lines[-1][:200]}" if lines else "process ended"


@dataclass(frozen=True)
class Setting:
    """What tuning found.

    Attributes:
        factor: of the documented learning rate.
        weight: λ of the l1 norm, for rows with mean squared norm WIDTH.
        initialization: of this package's atoms.
        found: what came of it.
    """

    factor: float = 1.0
    weight: float = 5.0
    initialization: str = STARTS[0]
    found: Report | None = None

    def applied(self, job: Job) -> Job:
        """Return the job with this setting."""
        return replace(
            job, factor=self.factor, weight=self.weight, initialization=self.initialization
        )


def main() -> None:
    """Measure everyone and print a table for each learner and number of latents."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--latents", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--learners", nargs="+", default=["topk", "relu_l1"])
    parser.add_argument("--steps", type=int, default=300, help="that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed-steps", type=int, help="steps that peers are timed over")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.3, 1, 3, 10, 30])
    parser.add_argument("--settings", type=Path, help="file that keeps what tuning found")
    parser.add_argument("--only", nargs="+", default=[OURS, OURS_BF16, *REQUIREMENTS])
    parser.add_argument("--environments", type=Path, default=default_folder())
    parser.add_argument("--install", action="store_true", help="make the peers' environments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(partial(salve, options.serve), "salve-plugin")
        return
    torch.set_num_threads(1)
    if options.install:
        for name in REQUIREMENTS.keys() & set(options.only):
            install(options.environments / name, REQUIREMENTS[name])
    print(
        f"{cpu()}, {torch.backends.cpu.get_cpu_capability()}, 1 thread, float32, "
        f"torch {torch.__version__}, Python {platform.python_version()}, seed {options.seed}, "
        f"{options.steps} steps of {BATCH} rows after {PASS} untimed, {ROWS} rows of width "
        f"{WIDTH}, median of {options.repeats}"
    )
    with tempfile.TemporaryDirectory() as folder:
        everyone = contestants(options.environments, options.only, Path(folder))
        data = str(Path(folder) / "rows.pt")
        torch.save(planted(options.seed), data)
        tuner = Tuner(options.factors, options.settings)
        try:
            for learner in options.learners:
                steps = PASS + options.steps
                job = Job(data, learner, 0, K, 0.0, 1.0, steps, PASS, BATCH, options.seed)
                timed = options.timed_steps or options.steps
                compare(everyone, job, options.latents, tuner, options.repeats, timed)
        finally:
            for contestant in everyone:
                contestant.stop()


def contestants(environments: Path, names: list[str], logs: Path) -> list[Contestant]:
    """Return this package, in both precisions, and the peers."""
    here = Path(__file__).resolve()
    peers = str(here.with_name("dictionary_peers.py"))
    commands = {
        OURS: [sys.executable, str(here), "--serve", "float32"],
        OURS_BF16: [sys.executable, str(here), "--serve", "bfloat16"],
        **{name: [str(interpreter(environments / name)), peers, name] for name in REQUIREMENTS},
    }
    return [
        Contestant(name, command, logs / f"{name}.log")
        for name, command in commands.items()
        if name in names
    ]


def compare(
    everyone: list[Contestant],
    job: Job,
    latents: list[int],
    tuner: "Tuner",
    repeats: int,
    timed: int,
) -> None:
    """Tune and measure one learner with each number of latents, and print the tables."""
    for job_ in (replace(job, n_latents=n_latents) for n_latents in latents):
        settings: dict[str, Setting] = {}
        reports: dict[str, list[Report]] = {}
        absent: dict[str, str] = {}
        for turn in range(repeats + 1):
            for contestant in everyone:
                name = contestant.name
                if name in absent:
                    continue
                try:
                    if turn == 0:
                        settings[name] = tuner.setting(contestant, job_)
                    else:
                        steps = job_.untimed + timed if name in REQUIREMENTS else job_.steps
                        timed_job = replace(job_, steps=steps, quality=False)
                        report = contestant.ask(settings[name].applied(timed_job))
                        reports.setdefault(name, []).append(report)
                        log(f"{name} {job_.learner} {job_.n_latents}: {report}")
                except AbsentError as reason:
                    absent[name] = str(reason)
        show(everyone, job_, reports, settings, absent)


class Tuner:
    """Finds everyone's settings, and keeps them in a file if there is one."""

    def __init__(self, factors: list[float], file: Path | None) -> None:
        """Read what an earlier run found."""
        self._factors, self._file = factors, file
        self._known: dict[str, Any] = {}
        self._last: dict[tuple[str, str], Setting] = {}
        if file is not None and file.exists():
            self._known = json.loads(file.read_text())

    def setting(self, contestant: Contestant, job: Job) -> Setting:
        """Return the setting for a job: the rate as with fewer latents, if those came before.

        Raises:
            AbsentError: if the contestant cannot do the job.
        """
        key = f"{contestant.name} {job.learner} {job.n_latents} {job.steps} {job.seed}"
        last = self._last.get((contestant.name, job.learner))
        if key in self._known:
            known = self._known[key]
            found = Setting(**{**known, "found": Report(**known["found"])})
        elif last is None:
            found = best_setting(contestant, job, self._factors)
        elif job.learner == "topk":
            found = replace(last, found=contestant.ask(last.applied(job)))
        else:
            found = sparse_enough(contestant, job, last)[0]
        log(f"{key}: {found}")
        self._last[contestant.name, job.learner] = found
        self._known[key] = asdict(found)
        if self._file is not None:
            self._file.write_text(json.dumps(self._known, indent=1))
        return found


def best_setting(contestant: Contestant, job: Job, factors: list[float]) -> Setting:
    """Return the setting with the best R² among those that reach the wanted L0."""
    found: list[tuple[bool, float, Setting]] = []
    start = Setting()
    starts = STARTS[:1] if contestant.name in REQUIREMENTS else STARTS
    # A choice of starts must not buy more trainings than a peer has.
    tries = [(factor, name) for factor in factors for name in starts][: len(factors)]
    for factor, name in tries:
        setting = replace(start, factor=factor, initialization=name)
        if job.learner == "topk":
            report = contestant.ask(setting.applied(job))
            setting = replace(setting, found=report)
        else:
            setting, report = sparse_enough(contestant, job, setting)
        r2 = report.r2 if math.isfinite(report.r2) else -math.inf
        reached = abs(report.l0 / K - 1) < 3 * CLOSE
        found.append((reached, r2, setting))
        start = setting if reached else start
        log(f"{contestant.name} {job.learner} {job.n_latents}: {setting} {report}")
    return max(found, key=lambda each: each[:2])[2]


def sparse_enough(contestant: Contestant, job: Job, setting: Setting) -> tuple[Setting, Report]:
    """Return the setting with the weight at which L0 is K, and what came of it."""
    tried: dict[float, Report] = {}
    weight = setting.weight
    for _ in range(TRIES):
        tried[weight] = contestant.ask(replace(setting, weight=weight).applied(job))
        log(f"{contestant.name} {job.n_latents}: lambda {weight:.4g}, {tried[weight]}")
        if abs(tried[weight].l0 / K - 1) < CLOSE:
            break
        weight = next_weight({tried_: report.l0 for tried_, report in tried.items()})
    weight = min(tried, key=lambda each: abs(math.log(max(tried[each].l0, 0.01) / K)))
    return replace(setting, weight=weight, found=tried[weight]), tried[weight]


def next_weight(l0: dict[float, float]) -> float:
    """Return the weight to try next, from L0 at those tried: heavier ones leave fewer active."""
    light = max((weight for weight in l0 if l0[weight] > K), default=None)
    heavy = min((weight for weight in l0 if l0[weight] <= K), default=None)
    if light is None or heavy is None:
        return light * 4 if light is not None else (heavy or 1.0) / 4
    # L0 falls roughly as a power of the weight; the ends are avoided, or one end might never move.
    above, below = math.log(l0[light] / K), math.log(max(l0[heavy], 0.01) / K)
    share = min(0.85, max(0.15, above / (above - below)))
    return float(light * (heavy / light) ** share)


def show(
    everyone: list[Contestant],
    job: Job,
    reports: dict[str, list[Report]],
    settings: dict[str, Setting],
    absent: dict[str, str],
) -> None:
    """Print one table."""
    speeds = {name: statistics.median(r.speed for r in each) for name, each in reports.items()}
    best = max((speed for name, speed in speeds.items() if name in REQUIREMENTS), default=math.nan)
    title = f"TopK, k = {K}" if job.learner == "topk" else f"ReLU-l1, L0 = {K}"
    print(f"\n{title}, {job.n_latents} latents")
    print(
        f"{'':20}{'rows/CPU s':>11}{'of best peer':>14}{'R2':>8}{'L0':>7}{'dead':>7}"
        f"{'rate':>10}{'lambda':>9}  version"
    )
    for contestant in everyone:
        name = contestant.name
        if name in absent:
            print(f"{name:20}absent: {absent[name]}")
            continue
        last = settings[name].found
        assert last is not None
        weight = "" if job.learner == "topk" else f"{settings[name].weight:.3g}"
        print(
            f"{name:20}{speeds[name]:11.0f}{ratio(speeds[name], best)}{last.r2:8.3f}{last.l0:7.1f}"
            f"{last.dead:7.2f}{last.rate:10.2g}{weight:>9}  {contestant.version}"
        )
    one, five = matmuls(job.n_latents)
    for name, speed in (("one matmul", one), ("five matmuls", five)):
        print(f"{name:20}{speed:11.0f}{ratio(speed, best)}")
    if OURS in speeds:
        print(f"{OURS} runs at {speeds[OURS] / one:.2f} of one, {speeds[OURS] / five:.2f} of five")
    sys.stdout.flush()


def ratio(speed: float, best: float) -> str:
    """Return a column of the table; without peers there is nothing to compare with."""
    return f"{'-':>14}" if math.isnan(best) else f"{speed / best:13.2f}x"


def matmuls(n_latents: int) -> tuple[float, float]:
    """Return rows per CPU second of the encoder's product alone, and of a dense step's five."""
    x, error = torch.randn(2, BATCH, WIDTH)
    code, slope = torch.randn(2, BATCH, n_latents)
    encoder, atoms = torch.randn(2, n_latents, WIDTH)
    products: list[Callable[[], Tensor]] = [
        lambda: x @ encoder.T,
        lambda: code @ atoms,
        lambda: error @ atoms.T,
        lambda: code.T @ error,
        lambda: slope.T @ x,
    ]
    times = [statistics.median(seconds(product) for _ in range(15)) for product in products]
    return BATCH / times[0], BATCH / sum(times)


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def salve(precision: Literal["float32", "bfloat16"], job: Job) -> Report:
    """Train with this package; the rate's factor is relative to 5e-3."""
    # The process that prints the tables, and reads no dictionary, starts without it.
    from salve_plugin.discover.kernels.precision import has_bfloat16
    from salve_plugin.discover.training import loop, work
    from salve_plugin.discover.training.fit import fit
    from salve_plugin.discover.training.run import Run

    if precision == "bfloat16" and not has_bfloat16():
        raise UnsupportedError("this processor has no instructions for bfloat16")
    data: dict[str, Tensor] = torch.load(job.data, weights_only=True)
    times: list[float] = []
    n_rows: list[int] = []

    def counted(batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for rows in batches:  # the last of an epoch has fewer rows
            n_rows.append(len(rows))
            yield rows

    def clocked(
        rule: Any, state: Any, batches: Iterator[Tensor], plan: Any, **named: Any
    ) -> Iterator[Any]:
        for done in loop.train(rule, state, counted(batches), plan, **named):
            times.append(time.process_time())
            yield done

    rate = 5e-3 * job.factor
    # Rows are divided by the root of their mean squared norm, so that the l1 norm weighs more.
    options = {"k": job.k} if job.learner == "topk" else {"l1": job.weight / math.sqrt(WIDTH)}
    with mock.patch.object(work, "train", clocked):
        dictionary = fit(
            data["train"],
            job.learner,
            n_latents=job.n_latents,
            steps=job.steps,
            batch_size=job.batch_size,
            learning_rate=rate,
            initialization=job.initialization,
            seed=job.seed,
            run=Run(precision=precision),
            **options,
        )

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        code = dictionary.encode(x)
        return code, dictionary.decode(code)

    speed = sum(n_rows[job.untimed :]) / (times[-1] - times[job.untimed - 1])
    if not job.quality:
        return Report(speed, rate)
    return Report(speed, rate, *quality(reconstruct, data["train"], data["test"]))


def install(environment: Path, requirements: list[str]) -> None:
    """Make a peer's environment, which sees the packages of the running one behind its own."""
    log(f"making {environment}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))
    shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "shared.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))
    python = str(interpreter(environment))
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=False)
    if done.returncode:
        log(f"pip could not install {requirements}")


def interpreter(environment: Path) -> Path:
    """Return the Python of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def default_folder() -> Path:
    """Return where the peers' environments are by default."""
    cache = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "salve-plugin-benchmarks"


def cpu() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def log(text: str) -> None:
    """Say on stderr what is going on."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
