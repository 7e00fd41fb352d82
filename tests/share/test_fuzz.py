"""Mutants, by the thousand: none is accepted as what it is not, and none does any harm.

`python tests/tools/fuzz.py --of edit --seed S --number N` gives one of them again.
"""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import fuzz
import fuzz_json
import pytest
from fuzz_form import form_of
from fuzz_mutant import Mutant
from fuzz_watch import watched

SEED = 2026


def outcomes(of: str, seed: int, count: int) -> dict[str, list[int]]:
    """Fuzz in a process of its own, whose memory and imports are the reader's alone.

    Returns the number of mutants of each kind that were refused, another and the same artifact.
    """
    numbers = ["--seed", str(seed), "--count", str(count)]
    command = [sys.executable, fuzz.__file__, "--of", of, *numbers]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sys.stdout.write(done.stdout)
    _, *rows = done.stdout.splitlines()
    return {row[:28].strip(): [int(cell) for cell in row[28:].split()] for row in rows}


@pytest.mark.parametrize(("of", "count"), [("edit", 600), ("bundle", 250), ("dictionary", 250)])
def test_many_mutants_are_refused_or_tell_truly_what_they_are(of: str, count: int) -> None:
    assert sum(outcomes(of, SEED, count)["all"]) == count


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("of", fuzz.SUBJECTS)
def test_ten_thousand_other_ones_are_too_and_every_kind_is_among_them(of: str) -> None:
    counts, kinds = outcomes(of, SEED + 1, 10_000), fuzz.SUBJECTS[of].kinds
    assert sum(counts.pop("all")) == 10_000
    assert set(counts) == {*kinds, *fuzz_json.HEAVY}
    assert min(sum(counts[kind]) for kind in kinds) > 200
    assert all(sum(column) > 100 for column in zip(*counts.values(), strict=True))


@pytest.mark.parametrize("of", fuzz.SUBJECTS)
def test_a_seed_and_a_number_give_the_same_mutant_again(of: str) -> None:
    seed = SEED + 1  # among whose first mutants no header has a hundred thousand tensors
    for number in range(len(fuzz.SUBJECTS[of].kinds)):
        one, other = fuzz.mutant_of(seed, number, of), fuzz.mutant_of(seed, number, of)
        assert one[:2] == other[:2]
        assert one[2].files == other[2].files
    first, second = (fuzz.mutant_of(each, 7, of)[2].files for each in (SEED, seed))
    assert first != second


# Not of bundles: the checker of types compiles their nested reader anew at every call.
@pytest.mark.parametrize("of", ["edit", "dictionary"])
def test_the_judge_convicts_an_accepted_mutant_and_a_lying_identity(
    of: str, tmp_path: Path
) -> None:
    files = fuzz.originals(of)[0]
    manifest = form_of(files).manifest
    note = fuzz_json.MUTATIONS["json: note changed"](Random(0), dict(files)).files
    assert fuzz.judged(files, Mutant(note, "honest"), tmp_path) == "another artifact"
    with pytest.raises(AssertionError, match="accepted as"):
        fuzz.judged(files, Mutant(note, "refused"), tmp_path)
    with pytest.raises(AssertionError, match="which the original is not"):
        fuzz.judged(files, Mutant(note, "same"), tmp_path)
    with pytest.raises(AssertionError, match="only the layout"):
        fuzz.judged(files, Mutant({**files, manifest: b"{}"}, "same"), tmp_path)
    with pytest.raises(KeyError):  # no error but a SalveError is let through
        fuzz.judged(files, Mutant({}, "refused"), tmp_path)


def test_the_judge_sees_files_imports_and_code(tmp_path: Path) -> None:
    (tmp_path / "inside").write_bytes(b"")
    with watched(tmp_path):
        (tmp_path / "inside").read_bytes()
    for folders, path in (((), tmp_path / "inside"), ((tmp_path,), Path(__file__))):
        with pytest.raises(AssertionError, match="reading did"), watched(*folders):
            path.read_bytes()
    with pytest.raises(AssertionError, match="reading did"), watched(tmp_path):
        (tmp_path / "inside").write_bytes(b"")
    with pytest.raises(AssertionError, match="exec"), watched():
        exec("pass")
    with pytest.raises(AssertionError, match="imported"), watched():
        sys.modules["a_module_of_an_attacker"] = sys
    del sys.modules["a_module_of_an_attacker"]
