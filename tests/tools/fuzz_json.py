"""Mutations of the manifest by an attacker who computes every digest anew."""

import json
from copy import deepcopy
from random import Random
from typing import Any

from fuzz_form import DICTIONARY, form_of
from fuzz_mutant import Mutant, Mutation, Verdict, identity_of, resealed, sealed, sealed_text
from replaced import owner, places
from small_artifacts import SEAL, Files

NUMBERS = (
    0, -1, 1, 2, -0.0, 0.5, 1e308, -1e308, 5e-324, 1e-400, 2**31, 2**53 - 1, 2**53, -(2**53), 2**63,
    2**64, 10**18, 10**400, float("nan"), float("inf"), -float("inf"), True, False,
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "a\nb", "\0", "\x1b[2J\x1b]0;owned\x07", "\r", "\ufeff", "\u202egnp.exe",
    "\u200b",
    "\ud800", "\udfff\ud800", "ẞ", "ﬁ", "İ", "fс.weight", "fc.weight\n", "__class__", "__proto__",
    "os.system", "eval", "{0.__class__}", "%s%n", "${jndi:ldap://x}", "'; drop table", "=1+1",
    "[/red][link=x]", "<script>", "&amp;", "nan", "NaN", "Infinity", "null", "true",
    "\U0001f4a9" * 50,
)  # fmt: skip
NAMES = (
    "..", "../edit.safetensors", "../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x", "..\\x",
    "\\\\host\\share", "CON", "NUL", "aux.png", "picture_../x.png", "picture_a.png\n",
    "picture_a\0.png", "picture_CON.png", "picture_.png", "picture_a.PNG", "edit.safetensors ",
    "Edit.safetensors", "./edit.safetensors", "edit.safetensors:stream", "edit_config.json",
    "README.md", "model.safetensors", "pytorch_model.bin", "modeling.py", "picture_а.png",
    "picture_" + "a" * 65 + ".png", "file:///etc/passwd", "https://example.org/x", "~/x", "$HOME",
)  # fmt: skip


def _manifest(files: Files) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(files[form_of(files).manifest])
    return config


def _value(rng: Random, before: object) -> object:
    extremes: list[object] = [*NUMBERS, *TEXTS, *NAMES, None, [], {}, [[]], {"": {}}, [None] * 50]
    near: list[object] = []
    if isinstance(before, int | float) and not isinstance(before, bool):
        near = [before + 1, -before, float(before), before * 2, str(before), [before]]
    elif isinstance(before, str):
        near = [before + " ", before.upper(), before[::-1], before[:-1], before * 2, [before]]
    elif isinstance(before, list):
        near = [before * 2, before[::-1], before[:-1], [before], [*before, None], before * 10_000]
    elif isinstance(before, dict):
        near = [list(before), {**before, "more": 1}, dict.fromkeys(before)]
    return rng.choice(near) if near and rng.random() < 0.5 else rng.choice(extremes)


def _replaced(rng: Random, files: Files) -> Mutant:
    config = _manifest(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(places(config))
        place = owner(config, path)
        place[path[-1]] = _value(rng, place[path[-1]])
    return Mutant(resealed(config, files), "honest")


def _removed(rng: Random, files: Files) -> Mutant:
    config = _manifest(files)
    path = rng.choice(places(config))
    del owner(config, path)[path[-1]]
    return Mutant(resealed(config, files), "honest")


def _renamed(rng: Random, files: Files) -> Mutant:
    config = _manifest(files)
    path = rng.choice([path for path in places(config) if isinstance(path[-1], str)])
    place = owner(config, path)
    place[rng.choice(TEXTS + NAMES)] = place.pop(path[-1])
    return Mutant(resealed(config, files), "honest")


def _added(rng: Random, files: Files) -> Mutant:
    config = _manifest(files)
    objects: list[Any] = [config, *(owner(config, path)[path[-1]] for path in places(config))]
    target = rng.choice([value for value in objects if isinstance(value, dict)])
    target[rng.choice(TEXTS + NAMES)] = _value(rng, None)
    return Mutant(resealed(config, files), "honest")


def _moved(rng: Random, files: Files) -> Mutant:
    config = _manifest(files)
    source, target = rng.choice(places(config)), rng.choice(places(config))
    owner(config, target)[target[-1]] = deepcopy(owner(config, source)[source[-1]])
    return Mutant(resealed(config, files), "honest")


def _file_listed(rng: Random, files: Files) -> Mutant:
    """List a file by a name that leads elsewhere; its digest is right, should anybody read it."""
    config, name = _manifest(files), rng.choice(NAMES)
    more = {**files, name: rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\x80\x04."))}
    form_of(files).own(config)["files"][name] = {}
    return Mutant(resealed(config, more), "refused")


def _nested(rng: Random, files: Files) -> Mutant:
    """Nest a free field: to the limit, over it, or so deep that a parser could overflow."""
    depth = rng.choice((3, 10, 13, 14, 15, 16, 17, 100, 990, 5_000, 100_000, 1_000_000))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    config, form = _manifest(files), form_of(files)
    place = form.own(config)
    for name in form.free:
        place = place[name]
    place["x"] = "HERE"
    text = resealed(config, files)[form.manifest]
    deep = text.replace(b'"HERE"', opening * depth + b"1" + closing * depth)
    # The digest is that of another value, which alone is reason enough, where it is covered.
    verdict: Verdict = "honest" if form is DICTIONARY else "refused"
    return Mutant({**files, form.manifest: sealed_text(_unsealed(deep), form)}, verdict)


def _unsealed(text: bytes) -> bytes:
    lines, seal = text.split(b"\n"), f'"{SEAL}"'.encode()
    return b"\n".join(line for line in lines if not line.lstrip().startswith(seal))


def _twice(rng: Random, files: Files) -> Mutant:
    """Repeat a key of some object, with the same value or another."""
    form = form_of(files)
    lines = _unsealed(files[form.manifest]).split(b"\n")
    single = [at for at, line in enumerate(lines) if b'": ' in line and line[-1:] == b","]
    at = rng.choice(single)
    name = lines[at].partition(b'": ')[0] + b'": '
    lines.insert(at, rng.choice((lines[at], name + b"null,", name + b'"x",')))
    return Mutant({**files, form.manifest: sealed_text(b"\n".join(lines), form)}, "refused")


def _text(rng: Random, files: Files) -> Mutant:
    """Write the manifest as no writer of ours does, with a right seal."""
    form = form_of(files)
    text = _unsealed(files[form.manifest])
    variants: list[bytes] = [
        b"\xef\xbb\xbf" + text, text + b"{}", text + b"\0", text[:-3], text + text,
        b"[" + text + b"]",
        text.decode().encode("utf-16"), text.decode().encode("utf-32"), b"\xff" + text,
        text.replace(b'"', b"'"), text.replace(b"1.5", b"NaN"), text.replace(b"1.5", b"1.5e999"),
        text.replace(b"1.5", b"-Infinity"), text.replace(b"1.5", b"0x1"),
        text.replace(b"1.5", b"01.5"),
        text.replace(b"1.5", b"1" * 5_000), text.replace(b"1.5", b"1." + b"1" * 1_000_000 + b"e"),
        text.replace(b"1.5", b'"\\ud800"'), text.replace(b"1.5", b'"\\x41"'), b"// x\n" + text,
        text.replace(b"null", b"nul", 1), text.replace(b",", b",,", 1), b"", b"{", b"{}",
        b'{"a":1}',
    ]  # fmt: skip
    return Mutant({**files, form.manifest: sealed_text(rng.choice(variants), form)}, "refused")


def _long(rng: Random, files: Files) -> Mutant:
    """Fill a manifest that stays below the limit of its size with very many values."""
    fillers = (
        "[" + "[]," * 5_000_000 + "[]]", "[" + "0," * 7_000_000 + "0]",
        "[" + "{}," * 4_000_000 + "1]",
        "[" + '"a",' * 3_000_000 + "1]", "[" + "1.5," * 3_500_000 + "1]",
        '["scale"' + ',"scale"' * 500_000 + ',"x"' * 2_000_000 + "]", "1." + "1" * 15_000_000,
        '"' + "a" * 15_000_000 + '"', '"' + "\\u0000" * 2_500_000 + '"',
        "{" + ",".join(f'"{at}":0' for at in range(1_000_000)) + "}",
        "{" + ",".join(f'"{at}":{{}}' for at in range(300_000)) + "}",
        "[" + ",".join(map(str, range(300_000))) + "]",
    )  # fmt: skip
    config, form = _manifest(files), form_of(files)
    fillable = {
        "edit_config.json": (
            ("requires",), ("labels",), ("data", "x"), ("edit", "rows"), ("more",),
            ("edit", "base", "description", "x"), ("tensors",), ("files",),
        ),
        "edit_bundle.json": (
            ("requires",), ("labels",), ("data", "x"), ("more",), ("base", "description", "x"),
            ("composition", "overlaps"), ("composition", "tensors"), ("members",), ("files",),
        ),
        "cfg.json": (
            ("architecture",), ("more",), *(("metadata", "salve_plugin", *path) for path in (
                ("meta", "x"), ("options", "x"), ("site", "readers"), ("files",),
            )),
        ),
    }  # fmt: skip
    place = rng.choice(fillable[form.manifest])
    owner(config, place)[place[-1]] = "HERE"
    text = _unsealed(sealed(config, form)).replace(b'"HERE"', rng.choice(fillers).encode())
    # A dictionary's meta may hold anything that stays below the limits.
    verdict: Verdict = "honest" if "meta" in place else "refused"
    return Mutant({**files, form.manifest: sealed_text(text, form)}, verdict)


def _only_sealed(rng: Random, files: Files) -> Mutant:
    """Change what the artifact is and forget its identity."""
    config, form = _manifest(files), form_of(files)
    form.note(config, f"note {rng.random()}")
    return Mutant({**files, form.manifest: sealed(config, form)}, "refused")


def _note(rng: Random, files: Files) -> Mutant:
    """Change what the identity covers, with every digest right: another one, and it says so."""
    config = _manifest(files)
    form_of(files).note(config, f"note {rng.random()}")
    changed = resealed(config, files)
    assert identity_of(changed) != identity_of(files)
    return Mutant(changed, "honest")


def _layout(rng: Random, files: Files) -> Mutant:
    """Write the same in another order, and by another program: the same artifact."""
    config, form = _manifest(files), form_of(files)
    own = form.own(config)
    own["producer"] = {"name": f"other {rng.random()}", "version": "9"}
    own["format_version"] = f"2.{rng.randrange(10_000)}"
    del own[SEAL]
    names = list(config)
    rng.shuffle(names)
    text = json.dumps({name: config[name] for name in names}, indent=rng.randrange(5))
    return Mutant({**files, form.manifest: sealed_text(text.encode(), form)}, "same")


MUTATIONS: dict[str, Mutation] = {
    "json: value replaced": _replaced,
    "json: field removed": _removed,
    "json: field renamed": _renamed,
    "json: field added": _added,
    "json: value moved": _moved,
    "json: file listed": _file_listed,
    "json: nested": _nested,
    "json: key twice": _twice,
    "json: text": _text,
    "json: identity forgotten": _only_sealed,
    "json: note changed": _note,
    "json: layout changed": _layout,
}
HEAVY: dict[str, Mutation] = {"json: many values": _long}
