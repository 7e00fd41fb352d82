"""Mutated edits, bundles and dictionaries, each of which a seed and a number give again.

python tests/tools/fuzz.py --seed 0 --number 4711              # one again, with its traceback
python tests/tools/fuzz.py --seed 0 --count 10000              # many, counted by kind
python tests/tools/fuzz.py --of bundle --seed 0 --count 10000  # or --of dictionary
"""

import argparse
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal

import fuzz_bundle
import fuzz_bytes
import fuzz_disk
import fuzz_json
import fuzz_tensors
import torch
from fuzz_form import BUNDLE_FORM, DICTIONARY, form_of, member_names
from fuzz_mutant import Mutant, Mutation, identity_of
from fuzz_watch import watched
from small_artifacts import (
    CARD,
    Files,
    describe_as,
    read_as,
    reader_of,
    small_artifact,
    small_bundle,
    small_dictionary_artifact,
    small_edit,
    small_model,
    tree,
)
from small_dictionaries import small_dictionary

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import MissingFileError, SalveError, printable
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.share.bundle import EditBundle
from salve_plugin.store.files import FileReader
from salve_plugin.store.place import ExistingFolder

MAX_SECONDS = 1.0
"""Of the processor, for one artifact."""
MAX_MEMORY = 100 * 2**20

Shared = EditArtifact | EditBundle | Dictionary


@dataclass(frozen=True)
class Subject:
    """What is mutated.

    Attributes:
        originals: makes sound ones.
        kinds: of mutations.
    """

    originals: Callable[[], list[Shared]]
    kinds: dict[str, Mutation]


KINDS: dict[str, Mutation] = {
    **fuzz_bytes.MUTATIONS,
    **fuzz_json.MUTATIONS,
    **fuzz_tensors.MUTATIONS,
    **fuzz_disk.MUTATIONS,
}


def _edits() -> list[Shared]:
    """Return edits with all parts, bare, and with a dictionary of their own."""
    embedded = [small_dictionary_artifact(learner) for learner in ("l1", "topk", "mp")]
    return [small_artifact(), EditArtifact(small_edit()), *embedded]


def _bundles() -> list[Shared]:
    """Return bundles of three, of one, and of two whose rows' content nothing shows."""
    bundle, bare = small_bundle(), EditArtifact(small_edit())
    one = {"one": small_artifact()}
    two = {"bare": bare, "all": bundle.members["all"]}
    without = {name: replace(member, pristine=None) for name, member in two.items()}
    return [bundle, *(EditBundle.of(small_model(), members) for members in (one, two, without))]


def _dictionaries() -> list[Shared]:
    """Return dictionaries in SAELens' layouts and in our own."""
    return [small_dictionary(learner) for learner in ("l1", "topk", "jumprelu", "gba", "vl", "mp")]


SUBJECTS = {
    "edit": Subject(_edits, KINDS),
    "bundle": Subject(_bundles, fuzz_bundle.MUTATIONS),
    "dictionary": Subject(_dictionaries, KINDS),
}
HEAVY_EVERY = 500
"""One mutant in so many is of the kinds that take the attacker's machine long."""

Outcome = Literal["refused", "another artifact", "the same artifact"]


@cache
def originals(of: str = "edit") -> tuple[Files, ...]:
    """Return the files of sound edits, bundles or dictionaries, all that are under a seal."""
    with tempfile.TemporaryDirectory() as folder:
        saved = [
            tree(shared.save_pretrained(Path(folder) / str(number)))
            for number, shared in enumerate(SUBJECTS[of].originals())
        ]
    cards = (CARD, f"/{CARD}")
    return tuple(
        {name: data for name, data in files.items() if not name.endswith(cards)} for files in saved
    )


def mutant_of(seed: int, number: int, of: str = "edit") -> tuple[str, Files, Mutant]:
    """Return the kind of a mutant, the files that it is made of, and the mutant."""
    kinds = SUBJECTS[of].kinds if (number + 1) % HEAVY_EVERY else fuzz_json.HEAVY
    kind = sorted(kinds)[number % len(kinds)]
    rng = Random(f"{seed}/{number}")
    files = rng.choice(originals(of))
    return kind, files, kinds[kind](rng, dict(files))


def judged(files: Files, mutant: Mutant, folder: Path) -> Outcome:
    """Read the mutant and return what it came to.

    Raises:
        AssertionError: if that is not what it must come to, if reading took too long or too much
            memory, or touched anything but the files of what is read.
        Exception: any that is no `SalveError`.
    """
    reader = reader_of_mutant(mutant, folder)
    places = [folder, *(folder / name for name in member_names(files))]
    started, memory = time.process_time(), _peak_memory()
    found, message = None, ""
    describe, read = _readers(files)
    with watched(*places if mutant.arrange else ()):
        with suppress(SalveError):
            describe(reader)
        try:
            found = read(reader)
        except SalveError as error:
            message = str(error)
    assert message.isprintable(), f"an unprintable message: {message[:500]!r}"
    assert len(message) < 2_000, f"a message of {len(message)} letters"
    seconds, grown = time.process_time() - started, _peak_memory() - memory
    assert seconds < 2 * MAX_SECONDS, f"reading twice took {seconds:.1f} s"
    assert grown < MAX_MEMORY, f"reading took {grown / 2**20:.0f} MB"
    return _outcome(files, mutant, found)


def _readers(files: Files) -> tuple[Callable[[FileReader], object], Callable[[FileReader], str]]:
    """Return what describes and what reads: each is given all mutants of what it is for."""
    form = form_of(files)
    kind: type[Shared] = EditArtifact
    if form in (DICTIONARY, BUNDLE_FORM):
        kind = Dictionary if form is DICTIONARY else EditBundle
    return lambda reader: describe_as(kind, reader), lambda reader: read_as(kind, reader).digest


def reader_of_mutant(mutant: Mutant, folder: Path) -> FileReader:
    """Return a reader of the mutant, in memory where that says it all."""
    if mutant.arrange is not None:
        folder.mkdir()
        for name, data in mutant.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        mutant.arrange(folder)
        return ExistingFolder(folder).read
    files = mutant.files

    def read(name: str, limit: int) -> bytes:
        member = re.fullmatch(r"[a-z0-9][a-z0-9_-]*/[a-zA-Z0-9_.-]+", name)
        if name == CARD or (member and name not in files):
            raise MissingFileError("no such file")
        return reader_of(files)(name, limit)

    return read


def _outcome(files: Files, mutant: Mutant, found: str | None) -> Outcome:
    if found is None:
        assert mutant.verdict != "same", "refused, although only the layout was changed"
        return "refused"
    assert mutant.verdict != "refused", f"accepted as {found}"
    assert found == identity_of(mutant.files), f"accepted as {found}, which it is not"
    if found == identity_of(files):
        return "the same artifact"
    assert mutant.verdict == "honest", f"accepted as {found}, which the original is not"
    return "another artifact"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(seed: int, numbers: range, folder: Path, of: str = "edit") -> Counter[tuple[str, Outcome]]:
    """Judge many mutants; return how many of each kind came to what.

    Raises:
        AssertionError: at the first one that fails, with the command that gives it again.
    """
    counts: Counter[tuple[str, Outcome]] = Counter()
    printable("\0")
    for files in originals(of):  # whatever is imported once is imported now
        judged(files, Mutant(files, "same"), folder)
    for number in numbers:
        place = folder / str(number)
        place.mkdir()
        kind, files, mutant = mutant_of(seed, number, of)
        try:
            counts[kind, judged(files, mutant, place / "artifact")] += 1
        except Exception as error:
            again = f"python tests/tools/fuzz.py --of {of} --seed {seed} --number {number}"
            raise AssertionError(f"{kind}: {error!r}; again: {again}") from error
        finally:
            shutil.rmtree(place)
    return counts


def table(counts: Counter[tuple[str, Outcome]]) -> str:
    """Return the counts, a line for each kind."""
    outcomes: tuple[Outcome, ...] = ("refused", "another artifact", "the same artifact")
    lines: list[tuple[str, ...]] = [("kind", *outcomes)]
    lines += [
        (kind, *(str(counts[kind, outcome]) for outcome in outcomes))
        for kind in sorted({kind for kind, _ in counts})
    ]
    totals = Counter[Outcome]()
    for (_, outcome), count in counts.items():
        totals[outcome] += count
    lines.append(("all", *(str(totals[outcome]) for outcome in outcomes)))
    return "\n".join(f"{name:<28}{a:>18}{b:>18}{c:>18}" for name, a, b, c in lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--of", choices=list(SUBJECTS), default="edit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int)
    parser.add_argument("--count", type=int, default=1_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # reading does not warn either
    first = 0 if arguments.number is None else arguments.number
    numbers = range(arguments.count) if arguments.number is None else range(first, first + 1)
    with tempfile.TemporaryDirectory() as folder:
        counts = run(arguments.seed, numbers, Path(folder), arguments.of)
    sys.stdout.write(table(counts) + "\n")


if __name__ == "__main__":
    main()
