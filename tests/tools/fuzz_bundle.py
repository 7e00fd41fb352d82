"""Mutations of a bundle: of its own manifest, and of one member with the bundle made to agree."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import fuzz_bytes
import fuzz_disk
import fuzz_json
import fuzz_tensors
from fuzz_form import BUNDLE, member_files, member_names
from fuzz_mutant import Mutant, Mutation, Verdict, resealed
from small_artifacts import CONFIG, Files


def _agreeing(files: Files, name: str) -> Files:
    """Return the files with the bundle's manifest made to say of a member what that one says."""
    config = json.loads(files[BUNDLE])
    try:
        said = json.loads(files[f"{name}/{CONFIG}"])
        config["members"][name] = {key: said[key] for key in ("digest", "edit", "evaluation")}
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # so malformed that it says nothing
    return resealed(config, files)


def _of_member(mutations: dict[str, Mutation]) -> Mutation:
    def mutation(rng: Random, files: Files) -> Mutant:
        name = rng.choice(member_names(files))
        mutant = mutations[rng.choice(sorted(mutations))](rng, member_files(files, name))
        others = {path: data for path, data in files.items() if not path.startswith(f"{name}/")}
        inside = {f"{name}/{path}": data for path, data in mutant.files.items()}
        changed = _agreeing({**others, **inside}, name)
        return Mutant(changed, mutant.verdict, _within(name, mutant.arrange))

    return mutation


def _within(name: str, arrange: Callable[[Path], None] | None) -> Callable[[Path], None] | None:
    return None if arrange is None else lambda folder: arrange(folder / name)


def _subfolder(rng: Random, files: Files) -> Mutant:
    """Let a member's subfolder be a link, a file, or nothing."""
    name, kind = rng.choice(member_names(files)), rng.choice(("link", "out", "file", "none"))

    def arrange(folder: Path) -> None:
        other = (folder.parent if kind == "out" else folder) / "elsewhere"
        (folder / name).rename(other)
        if kind in ("link", "out"):
            (folder / name).symlink_to(other)
        elif kind == "file":
            (folder / name).write_bytes(files[f"{name}/{CONFIG}"])

    return Mutant(files, "refused", arrange)


def _members(rng: Random, files: Files) -> Mutant:
    """Remove, repeat, rename or exchange members, in the manifest and on the disk."""
    config = json.loads(files[BUNDLE])
    one, other = rng.choice(member_names(files)), rng.choice(member_names(files))
    kind = rng.choice(("removed", "repeated", "renamed", "exchanged"))
    new = rng.choice(("zz", "a-b_c", "..", "A", "", "x/y", other))
    verdict: Verdict = "honest"
    own = member_files(files, one)
    said = config["members"]
    moved = {**files}
    if kind in ("removed", "renamed"):
        moved = {path: data for path, data in files.items() if not path.startswith(f"{one}/")}
    if kind in ("repeated", "renamed"):
        moved |= {f"{new}/{path}": data for path, data in own.items()}
        said[new] = said[one]
        verdict = "honest" if new in ("zz", "a-b_c", other) else "refused"
    if kind == "exchanged":
        theirs = member_files(files, other)
        moved |= {f"{one}/{path}": data for path, data in theirs.items()}
        moved |= {f"{other}/{path}": data for path, data in own.items()}
        said[one], said[other] = said[other], said[one]
    if kind in ("removed", "renamed") and new != one:
        del said[one]
    config["files"] = {f"{name}/{CONFIG}": {} for name in said}
    if kind in ("repeated", "renamed") and rng.random() < 0.5:
        for overlap in config["composition"]["overlaps"]:
            overlap |= {key: new for key in ("first", "second") if overlap[key] == one}
    return Mutant(resealed(config, moved), verdict)


def _beside(rng: Random, files: Files) -> Mutant:
    """Put a whole artifact that the manifest does not list beside the members."""
    own = member_files(files, rng.choice(member_names(files)))

    def arrange(folder: Path) -> None:
        (folder / "unlisted").mkdir()
        for path, data in own.items():
            (folder / "unlisted" / path).write_bytes(data)

    return Mutant(files, "same", arrange)


_DISK = {name: each for name, each in fuzz_disk.MUTATIONS.items() if name != "disk: folder"}

MUTATIONS: dict[str, Mutation] = {
    **fuzz_bytes.OF_ANY_FILE,
    **fuzz_json.MUTATIONS,
    **fuzz_disk.MUTATIONS,
    "bundle: bytes of a member": _of_member(fuzz_bytes.MUTATIONS),
    "bundle: json of a member": _of_member(fuzz_json.MUTATIONS),
    "bundle: tensors of a member": _of_member(fuzz_tensors.MUTATIONS),
    "bundle: disk of a member": _of_member(_DISK),
    "bundle: subfolder": _subfolder,
    "bundle: members": _members,
    "bundle: artifact beside": _beside,
}
