"""Mutated artifacts, by the thousand: none is accepted as what it is not, and none does any harm.

`python tests/tools/fuzz.py --seed S --number N` gives one of them again.
"""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import fuzz
import fuzz_json
import pytest
from fuzz_mutant import Mutant
from fuzz_watch import watched

SEED = 2026


def outcomes(seed: int, count: int) -> dict[str, list[int]]:
    """Fuzz in a process of its own, whose memory and imports are the reader's alone.

    Returns the number of mutants of each kind that were refused, another and the same artifact.
    """
    command = [sys.executable, fuzz.__file__, "--seed", str(seed), "--count", str(count)]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    sys.stdout.write(done.stdout)
    _, *rows = done.stdout.splitlines()
    return {row[:28].strip(): [int(cell) for cell in row[28:].split()] for row in rows}


def test_a_thousand_mutated_artifacts_are_refused_or_tell_truly_what_they_are() -> None:
    assert sum(outcomes(SEED, 1_000)["all"]) == 1_000


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_ten_thousand_other_ones_are_too_and_every_kind_is_among_them() -> None:
    counts = outcomes(SEED + 1, 10_000)
    assert sum(counts.pop("all")) == 10_000
    assert set(counts) == {*fuzz.KINDS, *fuzz_json.HEAVY}
    assert min(sum(counts[kind]) for kind in fuzz.KINDS) > 200


def test_a_seed_and_a_number_give_the_same_mutant_again() -> None:
    for number in range(len(fuzz.KINDS)):
        one, other = fuzz.mutant_of(SEED, number), fuzz.mutant_of(SEED, number)
        assert one[:2] == other[:2]
        assert one[2].files == other[2].files
    assert fuzz.mutant_of(SEED, 0)[2].files != fuzz.mutant_of(SEED + 1, 0)[2].files


def test_the_judge_convicts_an_accepted_mutant_and_a_lying_identity(tmp_path: Path) -> None:
    files = fuzz.originals()[0]
    note = fuzz_json.MUTATIONS["json: note changed"](Random(0), dict(files)).files
    assert fuzz.judged(files, Mutant(note, "honest"), tmp_path) == "another artifact"
    with pytest.raises(AssertionError, match="accepted as"):
        fuzz.judged(files, Mutant(note, "refused"), tmp_path)
    with pytest.raises(AssertionError, match="which the original is not"):
        fuzz.judged(files, Mutant(note, "same"), tmp_path)
    with pytest.raises(AssertionError, match="only the layout"):
        fuzz.judged(files, Mutant({**files, "edit_config.json": b"{}"}, "same"), tmp_path)
    with pytest.raises(KeyError):  # no error but a SalveError is let through
        fuzz.judged(files, Mutant({}, "refused"), tmp_path)


def test_the_judge_sees_files_imports_and_code(tmp_path: Path) -> None:
    (tmp_path / "inside").write_bytes(b"")
    with watched(tmp_path):
        (tmp_path / "inside").read_bytes()
    for folder, path in ((None, tmp_path / "inside"), (tmp_path, Path(__file__))):
        with pytest.raises(AssertionError, match="reading did"), watched(folder):
            path.read_bytes()
    with pytest.raises(AssertionError, match="reading did"), watched(tmp_path):
        (tmp_path / "inside").write_bytes(b"")
    with pytest.raises(AssertionError, match="exec"), watched(None):
        exec("pass")
    with pytest.raises(AssertionError, match="imported"), watched(None):
        sys.modules["a_module_of_an_attacker"] = sys
    del sys.modules["a_module_of_an_attacker"]
