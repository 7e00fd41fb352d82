"""Mutated artifacts, by the thousand: none is accepted as what it is not, and none does any harm.

`python tests/tools/fuzz.py --seed S --number N` gives one of them again.
"""

import sys
from collections import Counter
from pathlib import Path
from random import Random

import fuzz
import fuzz_json
import pytest
from fuzz_mutant import Mutant
from fuzz_watch import watched

SEED = 2026


def test_a_thousand_mutated_artifacts_are_refused_or_tell_truly_what_they_are(
    tmp_path: Path,
) -> None:
    assert fuzz.run(SEED, range(1_000), tmp_path).total() == 1_000


@pytest.mark.slow
def test_ten_thousand_other_ones_are_too_and_every_kind_is_among_them(tmp_path: Path) -> None:
    counts = fuzz.run(SEED + 1, range(10_000), tmp_path)
    sys.stdout.write(fuzz.table(counts) + "\n")
    assert counts.total() == 10_000
    by_kind: Counter[str] = Counter()
    for (kind, _), count in counts.items():
        by_kind[kind] += count
    assert set(by_kind) == {*fuzz.KINDS, *fuzz_json.HEAVY}
    assert min(by_kind[kind] for kind in fuzz.KINDS) > 200


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
