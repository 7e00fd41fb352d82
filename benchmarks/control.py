"""Which edits take a concept out of a network, and which suppress a class, at what cost?

Small timm networks learn planted shortcuts (`planted.py`), three seeds each. Every method gets the
same recorded inputs of the head, of fresh pictures of the training digits; what is chosen
automatically is chosen on other digits; everything is measured on a third part, where every
picture exists with and without the attribute.

    python benchmarks/control.py            # three seeds, about 25 minutes on 2 cores
    python benchmarks/control.py --quick    # one seed
    python benchmarks/control.py --quick --networks vit --hidden    # of hidden edits alone
"""

import argparse
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

# The folder of a script is on the path, not the one above it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import salve_plugin as salve
from benchmarks import planted
from benchmarks.control_tables import (
    Job,
    Removed,
    Result,
    Suppressed,
    report_removal,
    report_suppression,
)
from benchmarks.erasures import (
    CLASSES,
    Codes,
    Head,
    Rows,
    balanced,
    candidates,
    fitted,
    folded,
    paired,
    published,
    trivial,
    with_bias,
)
from benchmarks.pair_outcomes import Outcome, Tested, unpaired
from salve_plugin.control.change import change
from salve_plugin.control.choosing.goals import RemoveConcept, RemoveShortcut, SuppressClass
from salve_plugin.control.erasers import fold_latents
from salve_plugin.control.evaluate import evaluate_head
from salve_plugin.control.operators import Gate, scaled_rows
from salve_plugin.control.writers.mask import mask
from salve_plugin.control.writers.zeroing import zero_row

Method = tuple[str, Head, str]
"""Its name, the head that it leaves, and what was chosen if something was."""

FIT_COPIES, CHOOSE_COPIES, TEST_COPIES, PAIR_COPIES = 6, 8, 4, 3
"""Pictures drawn of each digit: to record, to choose on, to test on, and pairs to record."""
GATE_STRENGTHS = (2.0, 5.0, 15.0, 40.0)
LOSS, NEAR = 0.005, 0.05
"""What of the accuracy (every group counting once) an automatic choice may cost, and how much less
than the best it may lift the worst group, where it chooses."""


def chosen(rows: Rows, head: Head, held: Tested) -> tuple[str, Head]:
    """Return the candidate that is best on pairs of other digits, with its name.

    Of those that lose at most `LOSS` of the accuracy and whose worst group is within `NEAR` of the
    best, the one with the fewest flips.
    """
    scored = [
        (name, edited, Outcome.of(held.tally(edited), held.classes, held.pair))
        for name, edited in candidates(rows, head)
    ]
    least = float(Outcome.of(held.tally(head), held.classes, held.pair).accuracy) - LOSS
    allowed = [one for one in scored if float(one[2].accuracy) >= least] or scored
    best = max(float(one[2].worst) for one in allowed)
    near = [one for one in allowed if float(one[2].worst) >= best - NEAR]
    name, edited, _ = min(near, key=lambda one: float(one[2].flips))
    return name, edited


def by_goal(hooked: salve.HookedModel, concepts: dict[str, salve.Concept]) -> Iterator[Method]:
    """Yield what `choose` takes for each concept, asked for more than there is to be had."""
    for known, concept in concepts.items():
        goals: dict[str, RemoveShortcut | RemoveConcept] = {
            "RemoveShortcut": RemoveShortcut(concept, min_gain=0.5),
            "RemoveConcept": RemoveConcept(concept, min_removed=0.95),
        }
        for name, goal in goals.items():
            choice = salve.choose(hooked, goal)
            edited = head_with(hooked, choice.edit)
            yield f"**choose({name}), {known} known**", edited, choice.chosen.method


def hidden_too(
    hooked: salve.HookedModel, proposed: bool, column: int, concept: salve.Concept,
    recorded: Sequence[planted.Pictures], others: Sequence[planted.Pictures],
    pictures: Sequence[planted.Pictures], test: Tested,
) -> Iterator[tuple[str, Tensor, str]]:  # fmt: skip
    """Yield what is tallied with edits of hidden sites.

    Of all branches' outputs of a transformer, alone and on offer; and, if asked for, of the sites
    that `choose` proposes itself, which takes longer than all other methods together.

    Args:
        hooked: the network.
        proposed: whether `choose` is to make hidden edits itself.
        column: which attribute.
        concept: found in the pairs `recorded`, with the attribute and without.
        recorded: those.
        others: other pairs, to fit hidden edits on.
        pictures: the test pairs, without the attribute and with it.
        test: what is recorded of them.
    """
    sites = [name for name in hooked.sites if name.endswith(("attn_out", "mlp_out"))]
    goal = RemoveConcept(concept, min_removed=0.95)
    images = [*map(batches, recorded)]

    def tally(edits: Sequence[salve.Edit]) -> Tensor:
        with ExitStack() as stack:
            for edit in edits:
                stack.enter_context(edit.applied(hooked))
            without, there = (
                salve.record(hooked, batches(each), progress=False).tensor().double()
                for each in pictures
            )
            weight, bias = (part.detach().double() for part in hooked.unembed())
            return replace(test, without=without, there=there).tally((weight, bias))

    offered: dict[str, Sequence[salve.Edit]] = {}
    if sites:  # padded convolutions see no offset
        hidden = salve.erase_through(
            hooked, batches(others[0]), batches(others[1]), sites, "repair",
            name=list(planted.ATTRIBUTES)[column],
        )  # fmt: skip
        yield f"pairs: repair at {len(sites)} hidden sites", tally(hidden), ""
        offered["hidden on offer"] = hidden
    if proposed:
        offered["sites proposed"] = ()
    for name, edits in offered.items():
        choice = salve.choose(hooked, goal, hidden=edits, images=images)
        name = f"**choose(RemoveConcept, {name}), pairs known**"
        yield name, tally(choice.edits), choice.chosen.method


def batches(pictures: planted.Pictures) -> list[tuple[Tensor, Tensor]]:
    """Return a loader of the pictures."""
    starts = range(0, len(pictures.labels), 250)
    return [(pictures.images[at : at + 250], pictures.labels[at : at + 250]) for at in starts]


def head_with(hooked: salve.HookedModel, edit: salve.Edit) -> Head:
    """Return the head that an edit leaves."""
    with edit.applied(hooked):
        weight, bias = hooked.unembed()
        return weight.detach().double().clone(), bias.detach().double().clone()


def best_latent(rows: Rows, dictionary: salve.Dictionary) -> int:
    """Return the latent whose code correlates most with the attribute under group weights."""
    with torch.no_grad():
        codes = dictionary.encode(rows.x.float()).double()
    moments = replace(rows, x=codes).moments(balanced=True)
    return int((moments.xz[:, 0].abs() / moments.xx.diagonal().sqrt().clamp(min=1e-9)).argmax())


def best_gate(rows: Rows, head: Head, dictionary: salve.Dictionary, held: Rows) -> Head:
    """Return the paper's gate on all rows, at the strength that lifts the worst group most."""
    atom = dictionary.atoms[best_latent(rows, dictionary)].detach().double()
    gates = [
        (scaled_rows(head[0], Gate(atom[None].float(), strength).factors.double(), None), head[1])
        for strength in GATE_STRENGTHS
    ]
    return max(gates, key=lambda one: float(unpaired(one, held).worst))


def refitted(rows: Rows, head: Head) -> Head:
    """Return scikit-learn's logistic regression under group weights; C as it comes is 1."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300)
    model.fit(rows.x.numpy(), rows.labels.numpy(), sample_weight=rows.weights.numpy() * len(rows.x))
    return torch.from_numpy(model.coef_).double(), torch.from_numpy(model.intercept_).double()


def heads(
    rows: Rows, head: Head, held: Rows, held_pairs: Tested,
    dictionaries: dict[str, salve.Dictionary], seed: int,
) -> Iterator[Method]:  # fmt: skip
    """Yield every method: its name, its head, and what was chosen if something was."""

    def encoder(dictionary: salve.Dictionary) -> Codes:
        return lambda x: dictionary.encode(x.float()).detach().double()

    encoders = {name: encoder(dictionary) for name, dictionary in dictionaries.items()}
    for name, edited in trivial(rows, head, seed):
        yield f"control: {name}", edited, ""
    for name, dictionary in dictionaries.items():
        yield f"the paper's gate, best {name} latent", best_gate(rows, head, dictionary, held), ""
    for name, dictionary in dictionaries.items():
        fold = fold_latents(dictionary, [best_latent(rows, dictionary)], [rows.x.float()])
        yield f"best {name} latent folded", folded(head, fold.map), ""
    erased = [("", published(rows, head, encoders)), ("balanced ", balanced(rows, head, encoders))]
    for prefix, methods in erased:
        for name, edited in methods:
            yield f"{prefix}{name}", edited, ""
            yield f"{prefix}{name} + bias", with_bias(rows, edited), ""
    for name, edited in paired(rows, head):
        yield f"pairs: {name}", edited, ""
    name, edited = chosen(rows, head, held_pairs)
    yield "pairs: chosen on other digits", edited, name
    yield "head refitted (scikit-learn)", refitted(rows, head), ""
    near = fitted(head, rows.x, rows.labels, rows.weights, ridge=3e-3)
    yield "head refitted, ridge to its own", near, ""


def run(job: Job) -> Result:
    """Train or load one network and measure everything on it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    hooked = salve.attach(planted.trained(job.network, job.seed, job.cache))
    draw = 10_000 * (job.seed + 1)

    def recorded(pictures: planted.Pictures) -> salve.Activations:
        return salve.record(hooked, batches(pictures), progress=False)

    def read(pictures: planted.Pictures) -> Tensor:
        return recorded(pictures).tensor().double()

    def tested(column: int, pictures: tuple[planted.Pictures, planted.Pictures]) -> Tested:
        without, there = pictures
        pair = list(planted.ATTRIBUTES.values())[column]
        return Tested(read(without), read(there), without.labels, without.digits, pair)

    fit_pictures = planted.pictures("train", FIT_COPIES, draw)
    acts = recorded(fit_pictures)
    held_pictures = planted.pictures("choose", CHOOSE_COPIES, draw + 10)
    held_x = read(held_pictures)
    learners = () if job.hidden_only else ("l1", "mp")
    dictionaries = {name: salve.fit(acts, name, seed=job.seed) for name in learners}
    weight, bias = hooked.unembed()
    head = weight.detach().double(), bias.detach().double()
    removed = []
    for column, (attribute, pair) in enumerate(planted.ATTRIBUTES.items()):
        both = planted.pairs("train", column, job.copies, draw + 20 + column)
        without, there = (recorded(each) for each in both)
        has = fit_pictures.attributes[:, column]
        rows = Rows(
            acts.tensor().double(), fit_pictures.labels, has.long(), pair,
            without.tensor().double(), there.tensor().double() - without.tensor().double(),
            without.labels(),
        )  # fmt: skip
        held = replace(
            rows, x=held_x, labels=held_pictures.labels,
            has=held_pictures.attributes[:, column].long(),
        )  # fmt: skip
        held_pairs = tested(
            column, planted.pairs("choose", column, TEST_COPIES, draw + 30 + column)
        )
        test_pictures = planted.pairs("test", column, TEST_COPIES, draw + 40 + column)
        test = tested(column, test_pictures)
        tallies, choices = {"base": test.tally(head)}, {}
        concepts = {
            # Pictures of one scan are not independent: they are unseen together.
            "groups": salve.find_concept(acts, has, name=attribute, groups=fit_pictures.digits),
            "pairs": salve.find_concept(
                there, without=without, name=attribute, groups=both[0].digits.repeat(2)
            ),
        }
        methods: Iterator[Method] = iter(())
        if job.hidden_only:
            del concepts["groups"]
        else:
            methods = heads(rows, head, held, held_pairs, dictionaries, job.seed)
        for name, edited, choice in chain(methods, by_goal(hooked, concepts)):
            tallies[name] = test.tally(edited)
            if choice:
                choices[name] = choice
        others = planted.pairs("train", column, job.copies, draw + 60 + column)
        with_hidden = hidden_too(
            hooked,
            job.hidden_only,
            column,
            concepts["pairs"],
            both[::-1],
            others[::-1],
            test_pictures,
            test,
        )
        for name, tallies[name], choice in with_hidden:
            if choice:
                choices[name] = choice
        removed.append(Removed(attribute, tallies, test.classes, choices))
    test_acts = recorded(planted.pictures("test", TEST_COPIES, draw + 50))
    suppressed: list[Suppressed] = []
    if not job.hidden_only:
        suppressed += suppressions(hooked, acts, test_acts, dictionaries)
    return Result(job, removed, suppressed)


def suppressions(
    hooked: salve.HookedModel, acts: salve.Activations, test: salve.Activations,
    dictionaries: dict[str, salve.Dictionary],
) -> Iterator[Suppressed]:  # fmt: skip
    """Suppress each class by each means; edits are chosen on `acts` and measured on `test`."""
    weight, bias = (part.detach() for part in hooked.unembed())
    x = test.tensor()
    logits = x @ weight.T + bias
    before = evaluate_head(weight, bias, test)
    features = {name: salve.profile(dictionary, acts) for name, dictionary in dictionaries.items()}
    for label in range(CLASSES):
        goals = {
            "choose(SuppressClass)": SuppressClass(label, max_accuracy=0.01, max_harm=0.005),
            "choose(SuppressClass, by latents)": SuppressClass(label, by="latents"),
            # Shown for what it costs, so that nothing it costs is too much.
            "the paper's gate on all rows": SuppressClass(
                label, by="latents", rows=None, max_harm=1.0
            ),
        }
        made = {"mask": mask(hooked, label, acts), "row set to zero": zero_row(hooked, label)}
        for name, dictionary in dictionaries.items():
            for kind, goal in goals.items():
                choice = salve.choose(
                    hooked, goal, acts, dictionary=dictionary, features=features[name]
                )
                made[f"{kind}, {name}"] = choice.edit
        without = logits.clone()
        without[:, label] = -torch.inf
        runner_up = without.argmax(1)
        for method, edit in made.items():
            edited, shifted = (part.float() for part in head_with(hooked, edit))
            effect = change(before, evaluate_head(edited, shifted, test), label)
            predicted = (x @ edited.T + shifted).argmax(1)
            agreement = float((predicted == runner_up).double().mean())
            yield Suppressed(method, effect.target_after, -effect.others_worst, agreement)


def main() -> None:
    """Run all networks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument(
        "--hidden", action="store_true",
        help="only choose(RemoveConcept) for pairs, and edits of hidden layers beside it",
    )  # fmt: skip
    parser.add_argument("--copies", type=int, default=PAIR_COPIES, help="pairs of each digit")
    parser.add_argument("--networks", nargs="+", default=["resnet", "vit"])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "salve-planted",
        help="where trained networks are kept",
    )  # fmt: skip
    options = parser.parse_args()
    started = time.perf_counter()
    seeds = (0,) if options.quick else (0, 1, 2)
    jobs = [
        Job(name, seed, options.cache, options.hidden, options.copies)
        for name in options.networks
        for seed in seeds
    ]
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, timm {version('timm')}, concept-erasure "
        f"{version('concept-erasure')}, scikit-learn {version('scikit-learn')}; one thread "
        f"a network, seeds {list(seeds)}",
        flush=True,
    )
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        results = []
        for result in pool.map(run, jobs):
            results.append(result)
            took = f"{time.perf_counter() - started:.0f} s"
            print(f"{result.job.network} {result.job.seed}: {took}", file=sys.stderr, flush=True)
    report_removal(results)
    if not options.hidden:
        report_suppression(results)
    print(f"\n{time.perf_counter() - started:.0f} s with {options.jobs} processes")


if __name__ == "__main__":
    main()
