"""Dictionaries as two files: every learner's comes back to the bit, and no changed bit passes."""

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.discover.saelens_layout import WRITTEN_AS
from salve_plugin.errors import (
    ArtifactError,
    InputError,
    MissingFileError,
    SalveError,
    WriteError,
)
from salve_plugin.share.dictionary_file import read_dictionary
from salve_plugin.share.folder import sha256_bytes
from salve_plugin.share.manifest import entry_of
from salve_plugin.share.schema import config_schema
from salve_plugin.site import Site

CONFIG, WEIGHTS, CARD = "cfg.json", "sae_weights.safetensors", "README.md"
WIDTH, LATENTS = 6, 33
SITE = Site("unembed.hook_in", "fc", "in", "pooled", WIDTH, readers=("fc",))
BUILT_IN = sorted(
    name for name, learner in LEARNERS.items() if learner.__module__.startswith("salve_plugin")
)


def tensors_of(learner: str, seed: int = 0, latents: int = LATENTS) -> dict[str, Tensor]:
    """Random tensors for a dictionary of any learner."""
    random = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    shapes = {
        "mixing": (WIDTH, 4), "pairs": (4, WIDTH), "triples": (4, WIDTH),
        **({"offset": (WIDTH,)} if learner == "vl" else {}),
    }  # fmt: skip
    extra = {
        name: randn(*shapes.get(name, (latents,))).abs() + 0.1 for name in LEARNERS[learner].extra
    }
    if "magnitude_bias" in extra:
        extra["magnitude_bias"] = randn(latents)
    return {
        "atoms": functional.normalize(randn(latents, WIDTH), dim=1),
        "encoder_weight": randn(latents, WIDTH),
        "encoder_bias": randn(latents),
        "decoder_bias": randn(WIDTH),
        **extra,
    }


def dictionary_of(learner: str, seed: int = 0, **options: Any) -> Dictionary:
    meta = {"seed": seed, "held_out_r2": 0.75, "l0": 3, "note": "ü\u2028|<b>", "scale": 1 / 3}
    return Dictionary(tensors_of(learner, seed), create(learner, options), SITE, meta)


def tiny() -> Dictionary:
    """A dictionary of two latents: three kilobytes of files."""
    tensors = tensors_of("jumprelu", latents=2)
    return Dictionary(tensors, create("jumprelu", {}), SITE, {"scale": 0.1})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def in_memory(files: Mapping[str, bytes]) -> Dictionary:
    return read_dictionary(lambda name, limit: files[name])


def fields(folder: Path) -> Any:
    return json.loads((folder / CONFIG).read_text())


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The two files of a small dictionary."""
    found = contents(tiny().save_pretrained(tmp_path / "tiny"))
    del found[CARD]
    return found


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("learner", BUILT_IN)
def test_a_dictionary_of_any_learner_comes_back_to_the_bit(learner: str, tmp_path: Path) -> None:
    dictionary = dictionary_of(learner)
    assert dictionary.save_pretrained(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    loaded = Dictionary.from_pretrained(tmp_path / "a", subfolder="b")
    assert loaded.digest() == dictionary.digest()
    for name, tensor in dictionary.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert (loaded.learner, loaded.options, loaded.site, dict(loaded.meta)) == (
        learner, dictionary.options, dictionary.site, dict(dictionary.meta)
    )  # fmt: skip
    x = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.encode(x), dictionary.encode(x))
    assert torch.equal(loaded(x), dictionary(x))
    assert loaded.origin is None
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_there_are_twenty_learners() -> None:
    assert len(BUILT_IN) == 20
    assert set(WRITTEN_AS) < set(BUILT_IN)


@pytest.mark.parametrize("learner", BUILT_IN)
def test_saelens_is_named_as_a_reader_only_where_it_is_one(learner: str, tmp_path: Path) -> None:
    folder = dictionary_of(learner).save_pretrained(tmp_path)
    card, architecture = (folder / CARD).read_text(), fields(folder)["architecture"]
    names = set(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
    assert architecture == WRITTEN_AS.get(learner, f"salve_plugin.{learner}")
    assert ("- saelens\n" in card) == ("sae_lens" in card) == (learner in WRITTEN_AS)
    assert ("W_dec" in names) == (learner in WRITTEN_AS)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, CONFIG, WEIGHTS])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("learner", ["gated", "gba", "topk", "poly"])
def test_other_precisions_come_back_to_the_bit(
    learner: str, kind: torch.dtype, tmp_path: Path
) -> None:
    tensors = {name: tensor.to(kind) for name, tensor in tensors_of(learner).items()}
    if kind != torch.float64:  # rounded atoms have other norms, so let them be unit vectors
        tensors["atoms"] = torch.eye(WIDTH, dtype=kind)[torch.arange(LATENTS) % WIDTH]
    dictionary = Dictionary(tensors, create(learner, {}), SITE)
    loaded = Dictionary.from_pretrained(dictionary.save_pretrained(tmp_path))
    assert loaded.digest() == dictionary.digest()
    assert loaded.atoms.dtype == kind


NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
SIZES = st.floats(2.0**-126, 2.0**100, width=32)


@given(
    learner=st.sampled_from(["gated", "gba"]),
    biases=st.lists(NUMBERS, min_size=4, max_size=4),
    summands=st.lists(NUMBERS, min_size=4, max_size=4),
    gains=st.lists(SIZES, min_size=4, max_size=4),
)
@settings(deadline=None, max_examples=50, derandomize=True)
def test_whatever_the_numbers_a_gated_dictionary_comes_back_to_the_bit(
    learner: str,
    biases: list[float],
    summands: list[float],
    gains: list[float],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    own = {"offset": summands, "magnitude_bias": summands, "gain": gains}
    tensors = {
        **tensors_of(learner, latents=4),
        "encoder_bias": torch.tensor(biases),
        **{name: torch.tensor(own[name]) for name in LEARNERS[learner].extra},
    }
    dictionary = Dictionary(tensors, create(learner, {}), SITE)
    folder = dictionary.save_pretrained(tmp_path_factory.mktemp("gated"))
    assert Dictionary.from_pretrained(folder).digest() == dictionary.digest()


def test_values_that_saelens_cannot_hold_travel_by_our_own_names(tmp_path: Path) -> None:
    changes: dict[str, tuple[str, Tensor]] = {
        "jumprelu": ("threshold", torch.full((LATENTS,), -0.5)),
        "gated": ("gain", torch.zeros(LATENTS)),
        "gba": ("offset", torch.full((LATENTS,), 1e-30)),
    }
    for learner, (name, value) in changes.items():
        tensors = {**tensors_of(learner), name: value}
        dictionary = Dictionary(tensors, create(learner, {}), SITE)
        with pytest.raises(InputError, match="cannot represent this dictionary"):
            salve.save_saelens(dictionary, tmp_path / learner)
        assert not (tmp_path / learner).exists()
        folder = dictionary.save_pretrained(tmp_path / learner)
        assert fields(folder)["architecture"] == f"salve_plugin.{learner}"
        assert Dictionary.from_pretrained(folder).digest() == dictionary.digest()


def test_the_same_dictionary_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny().save_pretrained(tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    again = Dictionary.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    assert contents(again) == contents(tmp_path / "a")
    with safe_open(tmp_path / "a" / WEIGHTS, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_tuples_in_meta_are_kept_as_lists(tmp_path: Path) -> None:
    dictionary = dictionary_of("topk", k=3)
    dictionary.meta = {"groups": (0.25, 0.5)}
    loaded = Dictionary.from_pretrained(dictionary.save_pretrained(tmp_path))
    assert dict(loaded.meta) == {"groups": [0.25, 0.5]}


def test_the_fields_are_valid_for_the_jsonschema_package(tmp_path: Path) -> None:
    schema = config_schema("dictionary.schema.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    for learner in BUILT_IN:
        folder = dictionary_of(learner).save_pretrained(tmp_path / learner)
        jsonschema.Draft202012Validator(schema).validate(fields(folder))


def test_both_schemas_mean_the_same_by_the_same_names() -> None:
    ours, edits = config_schema("dictionary.schema.json"), config_schema()
    definitions: Any = edits["$defs"]
    properties: Any = edits["properties"]
    embedded = properties["dictionary"]["properties"]["fields"]["properties"]
    theirs = {**embedded, **definitions, "producer": properties["producer"]}
    shared: Any = ours["$defs"]
    assert {name: theirs[name] for name in shared if name != "size"} == {
        name: value for name, value in shared.items() if name != "size"
    }


# --- what is refused -----------------------------------------------------------------------------


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
    assert in_memory(files).digest() == tiny().digest()
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
    config["metadata"]["salve_plugin"]["files"][WEIGHTS] = entry_of(data)
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
        (own(format_version="2.0"), "upgrade"),
        (own(format_version=1), "expected for example '1.0'"),
        (own(learner="topk"), "no dictionary of learner 'topk': .* has no options"),
        (own(learner="os.system"), "no learner 'os.system'; choose one of .*register first"),
        (own(learner="../x"), "a string that matches"),
        (own(options={}), "contradicts"),  # the defaults, which are left out
        (own(options={"l0": 0.5}), "the dictionary is [0-9a-f]{64}, it should be"),
        (own(options={"l0": "x"}), "no dictionary of learner"),
        (own(options={"l0": {}}), "one of the types"),
        (own(digest="0" * 64), "the dictionary is"),
        (own(meta=[]), "one of the types"),
        (own(hook="x"), r"unknown fields \['hook'\]"),
        (own(site={"name": "x"}), "lacks the fields"),
        (top(architecture="temporal"), "a string that matches"),
        (top(architecture="topk"), "holds .*'threshold'"),
        (top(architecture="gated"), "holds .* a dictionary of architecture 'gated' has"),
        (top(architecture="salve_plugin.jumprelu"), "this dictionary has tensors"),
        (top(apply_b_dec_to_input=True), "expected one of"),
        (top(d_sae=3), r"asks for floats of shape \(3, 6\)"),
        (top(d_in=10**12), "a value between"),
        (top(k=2), "contradicts"),
        (top(dtype="bfloat16"), "contradicts"),
        (top(device="cuda"), "expected one of"),
        (top(extra=1), "unknown fields"),
        (put("W_enc", torch.ones(WIDTH, 2)), "the dictionary is"),
        (put("W_enc", torch.ones(WIDTH)), "asks for floats of shape"),
        (put("W_enc", torch.ones(WIDTH, 2, dtype=torch.int64)), "is torch.int64"),
        (put("W_enc", torch.full((WIDTH, 2), torch.nan)), "holds NaN"),
        (put("W_dec", torch.ones(2, WIDTH)), "atom 0 has norm"),
        (put("extra", torch.ones(1)), "holds .*'extra'"),
        (put("threshold", torch.ones(2, dtype=torch.bool)), "expected dtype"),
        (drop("b_enc"), "a dictionary of architecture 'jumprelu' has"),
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


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**53), st.floats(allow_nan=False), st.text(),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.integers(), max_size=2),
)  # fmt: skip


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items: Any = value.items() if isinstance(value, dict) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


@given(place=st.integers(0, 10**6), value=VALUES)
@settings(deadline=None, max_examples=400, derandomize=True)
def test_fields_with_any_value_replaced_and_sealed_anew_raise_only_our_errors(
    place: int, value: object, shared: dict[str, bytes]
) -> None:
    config = json.loads(shared[CONFIG])
    everywhere = places(config)
    path = everywhere[place % len(everywhere)]
    inner: Any = config
    for key in path[:-1]:
        inner = inner[key]
    before, inner[path[-1]] = inner[path[-1]], value
    if path in {("metadata",), ("metadata", "salve_plugin")}:  # no place for a seal
        data = json.dumps(config).encode()
    else:
        data = resealed(config)
    try:
        loaded = in_memory({**shared, CONFIG: data})
    except SalveError:
        return
    free = path[2:3] in {("meta",), ("producer",)} or path[-1] in {
        "sae_lens_version", "manifest_sha256", "format_version",
    }  # fmt: skip
    assert free or value == before
    assert loaded.digest() == tiny().digest()


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
    config["metadata"]["salve_plugin"]["files"][WEIGHTS] = entry_of((pickle / WEIGHTS).read_bytes())
    (pickle / CONFIG).write_bytes(resealed(config))
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS} is a pickle"):
        Dictionary.from_pretrained(pickle)


def test_meta_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"deeper": deep}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"value": float("nan")}, "finite plain JSON"),
        ({"value": {1, 2}}, "finite plain JSON"),
        ({"value": 2**60}, "beyond"),
        ({"value": "\ud800"}, "not a plain JSON value"),
        (deep, "nested deeper"),
        ({str(number): 0 for number in range(1001)}, "could not be read back"),
        ({"value": "x" * 5_000_000}, "could not be read back"),
    ]
    for meta, message in cases:
        dictionary = tiny()
        dictionary.meta = meta
        with pytest.raises(InputError, match=message):
            dictionary.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        with pytest.raises(WriteError, match="cannot write"):
            tiny().save_pretrained(tmp_path / place)


# --- the card ------------------------------------------------------------------------------------


def test_the_card_names_the_base_model_and_the_measures(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    dictionary = dictionary_of("topk", k=3)
    model = {"architecture": "res|net", "hf_hub_id": "timm/resnet18", "license": "apache-2.0"}
    dictionary.meta = {**dictionary.meta, "model": model, "dead_share": None}
    card = ModelCard.load(dictionary.save_pretrained(tmp_path) / CARD)
    assert card.data.to_dict() == {
        "library_name": "salve_plugin",
        "tags": ["salve_plugin", "sparse-autoencoder", "interpretability", "saelens"],
        "base_model": "timm/resnet18",
        "base_model_relation": "adapter",
    }
    assert "# Dictionary of 33 features of res\\|net" in card.text
    assert "| explained variance of held-out rows (R²) | 0.75 |" in card.text
    assert dictionary.digest() in card.text
    assert "share of latents" not in card.text


def test_another_dictionary_gets_another_card_but_peoples_words_stay(tmp_path: Path) -> None:
    dictionary_of("topk", k=3).save_pretrained(tmp_path)
    other = dictionary_of("l1")
    other.save_pretrained(tmp_path)
    assert other.digest() in (tmp_path / CARD).read_text()
    assert "- saelens" not in (tmp_path / CARD).read_text()
    assert Dictionary.from_pretrained(tmp_path).digest() == other.digest()
    (tmp_path / CARD).write_text("---\nlicense: mit\ntags:\n- mine\n---\nMy words.\n")
    (tmp_path / "sparsity.safetensors").write_bytes(b"not ours")
    dictionary_of("topk", k=3).save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert text.endswith("---\nMy words.\n")
    assert "license: mit" in text
    assert "- mine\n- salve_plugin\n" in text
    assert (tmp_path / "sparsity.safetensors").read_bytes() == b"not ours"
    again = text
    dictionary_of("topk", k=3).save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == again
