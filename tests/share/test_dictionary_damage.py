"""Files of dictionaries that were changed, by accident or on purpose: none is accepted."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replaced import accepted
from small_artifacts import read_as
from small_dictionaries import (
    CARD,
    CONFIG,
    LATENTS,
    SITE,
    WEIGHTS,
    WIDTH,
    contents,
    dictionary_of,
    fields,
    in_memory,
    tensors_of,
    tiny,
)
from torch import Tensor

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import (
    ArtifactError,
    MissingFileError,
)
from salve_plugin.store.digest import sha256_bytes
from salve_plugin.store.place import ExistingFolder
from salve_plugin.store.seal import FileEntry


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The two files of a small dictionary."""
    found = contents(tiny().save_pretrained(tmp_path / "tiny"))
    del found[CARD]
    return found


def flips(files: Mapping[str, bytes], name: str, step: int) -> list[int]:
    """The flipped bits of a file that nobody noticed."""
    unnoticed = []
    for bit in range(0, 8 * len(files[name]), step):
        changed = bytearray(files[name])
        changed[bit // 8] ^= 1 << bit % 8
        try:
            in_memory({**files, name: bytes(changed)})
        except ArtifactError:
            continue
        unnoticed.append(bit)
    return unnoticed


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_flipped_bit_in_any_byte_of_either_file_is_refused(
    files: dict[str, bytes], name: str
) -> None:
    assert in_memory(files).digest == tiny().digest
    # A stride that is prime to 8: every byte at least once, every bit position as often.
    assert flips(files, name, 7) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_every_flipped_bit_of_either_file_is_refused(files: dict[str, bytes], name: str) -> None:
    assert flips(files, name, 1) == []


def test_truncations_and_added_bytes_are_refused(files: dict[str, bytes]) -> None:
    for name, data in files.items():
        shorter = (data[:length] for length in range(0, len(data), 3))
        for damaged in (*shorter, data[:-1], data + b"\0", data + b"\n", data * 2):
            with pytest.raises(ArtifactError):
                in_memory({**files, name: damaged})


def resealed(config: dict[str, Any]) -> bytes:
    """The bytes of a `cfg.json` whose seal is right, whatever else is wrong with it."""

    def written(config: dict[str, Any]) -> bytes:
        text = json.dumps(config, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
        return text.encode(errors="surrogatepass")

    config = copy.deepcopy(config)
    own = config["metadata"]["salve_plugin"]
    own.pop("manifest_sha256", None)
    own["manifest_sha256"] = sha256_bytes(written(config))
    return written(config)


Change = Callable[[dict[str, Any], dict[str, Tensor]], None]


def forged(files: Mapping[str, bytes], change: Change) -> dict[str, bytes]:
    """Files with every digest right, as somebody would make them who wants to deceive."""
    config = json.loads(files[CONFIG])
    weights = safetensors.torch.load(files[WEIGHTS])
    change(config, weights)
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    config["metadata"]["salve_plugin"]["files"][WEIGHTS] = FileEntry.of(data)
    return {WEIGHTS: data, CONFIG: resealed(config)}


def own(**values: Any) -> Change:
    """Set fields of metadata.salve_plugin."""
    return lambda config, _: config["metadata"]["salve_plugin"].update(values)


def top(**values: Any) -> Change:
    """Set fields that SAELens reads."""
    return lambda config, _: config.update(values)


def put(name: str, value: Tensor) -> Change:
    return lambda _, weights: weights.update({name: value})


def drop(name: str) -> Change:
    def change(_: dict[str, Any], weights: dict[str, Tensor]) -> None:
        del weights[name]

    return change


def of_learner(name: str, **options: Any) -> Change:
    def change(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        tensors = tensors_of(name)
        weights.clear()
        weights.update(tensors)
        config["architecture"] = f"salve_plugin.{name}"
        config["d_sae"] = LATENTS
        config["metadata"]["salve_plugin"] |= {"learner": name, "options": options}

    return change


def test_a_forgery_that_changes_nothing_is_accepted(files: dict[str, bytes]) -> None:
    assert forged(files, lambda config, weights: None) == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (own(format_version="3.0"), "upgrade"),
        (own(format_version=1), "expected for example '2.0'"),
        (own(learner="topk"), "no dictionary of learner 'topk': .* has no options"),
        (own(learner="os.system"), "no learner 'os.system'; choose one of .*register it first"),
        (own(learner="../x"), "matching regex"),
        (own(options={}), "contradicts"),  # the defaults, which are left out
        (own(options={"l0": 0.5}), "the dictionary is [0-9a-f]{64}, it should be"),
        (own(options={"l0": "x"}), "no dictionary of learner"),
        (own(options={"l0": {}}), r"got `object` - at `\$\.metadata\.salve_plugin\.options"),
        (own(digest="0" * 64), "the dictionary is"),
        (own(meta=[]), "Expected `object`, got `array`"),
        (own(hook="x"), r"unknown fields \['hook'\]"),
        (own(site={"name": "x"}), "missing required field"),
        (top(architecture="temporal"), "matching regex"),
        (top(architecture="topk"), r"unexpected \['threshold'\]"),
        (top(architecture="gated"), r"missing \['b_gate', 'b_mag', 'r_mag'\]"),
        (top(architecture="salve_plugin.jumprelu"), "this dictionary has tensors"),
        (top(apply_b_dec_to_input=True), "is not false"),
        (top(d_sae=3), r"asks for floats of shape \(3, 6\)"),
        (top(d_in=10**12), "Expected `int` <= 1000000000"),
        (top(k=2), "contradicts"),
        (top(dtype="bfloat16"), "contradicts"),
        (top(device="cuda"), "Invalid enum value 'cuda'"),
        (top(extra=1), "unknown fields"),
        (put("W_enc", torch.ones(WIDTH, 2)), "the dictionary is"),
        (put("W_enc", torch.ones(WIDTH)), "asks for floats of shape"),
        (put("W_enc", torch.ones(WIDTH, 2, dtype=torch.int64)), "is torch.int64"),
        (put("W_enc", torch.full((WIDTH, 2), torch.nan)), "holds NaN"),
        (put("W_dec", torch.ones(2, WIDTH)), "atom 0 has norm"),
        (put("extra", torch.ones(1)), r"unexpected \['extra'\]"),
        (put("threshold", torch.ones(2, dtype=torch.bool)), "expected dtype"),
        (drop("b_enc"), r"missing \['b_enc'\]"),
        (of_learner("mp", k=10**9), "option k is 1000000000, more than the 4096"),
        (of_learner("itda", k=5000), "option k is 5000, more than"),
        (of_learner("snmf", updates=10**12), "option updates is 1000000000000, more than"),
        (of_learner("mp", k=[3]), r"option k is \[3\], more than"),
    ],
)
def test_a_forgery_with_every_seal_right_is_refused_for_its_content(
    files: dict[str, bytes], change: Change, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        in_memory(forged(files, change))


def test_what_saelens_reads_and_what_we_read_cannot_be_two_things(tmp_path: Path) -> None:
    files = contents(dictionary_of("gated").save_pretrained(tmp_path))
    gain = safetensors.torch.load(files[WEIGHTS])["r_mag"]
    # The float32 gain is still the same; SAELens would not see the difference either, but a rule
    # without exceptions is simpler to trust.
    slightly = forged(files, put("r_mag", gain * (1 + 1e-10)))
    with pytest.raises(ArtifactError, match=r"contradicts itself: \['r_mag'\]"):
        in_memory(slightly)
    other = forged(files, put("r_mag", gain.float()))
    with pytest.raises(ArtifactError, match=r"the dictionary is|contradicts itself"):
        in_memory(other)


@given(data=st.data())
@settings(deadline=None, max_examples=400, derandomize=True)
def test_fields_with_any_value_replaced_and_sealed_anew_raise_only_our_errors(
    data: st.DataObject, shared: dict[str, bytes]
) -> None:
    digests: list[str] = []
    path = accepted(
        data,
        shared[CONFIG],
        resealed,
        lambda config: digests.append(in_memory({**shared, CONFIG: config}).digest),
    )
    assert set(digests) <= {tiny().digest}
    assert path is None or path[2:3] in {("meta",), ("producer",)} or path[-1] in {
        "sae_lens_version", "manifest_sha256", "format_version",
    }  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return contents(tiny().save_pretrained(tmp_path_factory.mktemp("shared")))


def test_a_dictionary_of_saelens_is_refused_with_what_reads_it(tmp_path: Path) -> None:
    salve.save_saelens(tiny(), tmp_path)
    config = fields(tmp_path)
    del config["metadata"]["salve_plugin"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"salve_plugin\.load_saelens\(folder, site\)"):
        Dictionary.from_pretrained(tmp_path)
    assert salve.load_saelens(tmp_path, SITE).learner == "jumprelu"
    for odd in ({}, {"metadata": 3}, {"metadata": {"salve_plugin": "yes"}}):
        (tmp_path / CONFIG).write_text(json.dumps(odd))
        with pytest.raises(ArtifactError, match="did not write it"):
            Dictionary.from_pretrained(tmp_path)


def test_no_more_is_read_than_was_written(tmp_path: Path) -> None:
    folder = tiny().save_pretrained(tmp_path / "tiny")
    asked: dict[str, int] = {}

    def read(name: str, limit: int) -> bytes:
        asked[name] = limit
        return ExistingFolder(folder).read(name, limit)

    read_as(Dictionary, read)
    assert asked[WEIGHTS] == (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(ArtifactError, match="2147483648 bytes, more than"):
        read_as(Dictionary, read)


def test_a_message_is_short_however_many_tensors_there_are(files: dict[str, bytes]) -> None:
    def more(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        weights |= {f"x{at}": torch.ones(1) for at in range(1_000)}

    with pytest.raises(ArtifactError) as caught:
        in_memory(forged(files, more))
    assert len(str(caught.value)) < 1_000


def test_missing_files_links_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        Dictionary.from_pretrained(tmp_path / "none")
    with pytest.raises(MissingFileError, match=CONFIG):
        Dictionary.from_pretrained(tmp_path)
    folder = tiny().save_pretrained(tmp_path / "tiny")
    for name in (CONFIG, WEIGHTS):
        broken = Path(shutil.copytree(folder, tmp_path / f"without {name}"))
        (broken / name).rename(tmp_path / name)
        with pytest.raises(MissingFileError, match=name):
            Dictionary.from_pretrained(broken)
        (broken / name).symlink_to(tmp_path / name)
        with pytest.raises(ArtifactError, match="is a link"):
            Dictionary.from_pretrained(broken)
    pickle = Path(shutil.copytree(folder, tmp_path / "pickle"))
    torch.save({"W_dec": torch.ones(1)}, pickle / WEIGHTS)
    config = fields(pickle)
    config["metadata"]["salve_plugin"]["files"][WEIGHTS] = FileEntry.of(
        (pickle / WEIGHTS).read_bytes()
    )
    (pickle / CONFIG).write_bytes(resealed(config))
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS} is a pickle"):
        Dictionary.from_pretrained(pickle)
