"""Dictionaries as two files: what is written, what comes back, and the card."""

from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
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
    tensors_of,
    tiny,
)
from torch import Tensor

import salve_plugin as salve
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import LEARNERS, create
from salve_plugin.discover.saelens_layout import written_as
from salve_plugin.errors import InputError, WriteError
from salve_plugin.share.artifact import EditArtifact

BUILT_IN = sorted(
    name for name, learner in LEARNERS.items() if learner.__module__.startswith("salve_plugin")
)


# --- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("learner", BUILT_IN)
def test_a_dictionary_of_any_learner_comes_back_to_the_bit(learner: str, tmp_path: Path) -> None:
    dictionary = dictionary_of(learner)
    assert dictionary.save_pretrained(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    loaded = Dictionary.from_pretrained(tmp_path / "a", subfolder="b")
    assert loaded.digest == dictionary.digest
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
    assert set(written_as()) < set(BUILT_IN)


@pytest.mark.parametrize("learner", BUILT_IN)
def test_saelens_is_named_as_a_reader_only_where_it_is_one(learner: str, tmp_path: Path) -> None:
    folder = dictionary_of(learner).save_pretrained(tmp_path)
    card, architecture = (folder / CARD).read_text(), fields(folder)["architecture"]
    names = set(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
    assert architecture == written_as().get(learner, f"salve_plugin.{learner}")
    assert ("- saelens\n" in card) == ("sae_lens" in card) == (learner in written_as())
    assert ("W_dec" in names) == (learner in written_as())
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
    assert loaded.digest == dictionary.digest
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
    assert Dictionary.from_pretrained(folder).digest == dictionary.digest


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
        assert Dictionary.from_pretrained(folder).digest == dictionary.digest


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
    schema = Dictionary.format.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for learner in BUILT_IN:
        folder = dictionary_of(learner).save_pretrained(tmp_path / learner)
        jsonschema.Draft202012Validator(schema).validate(fields(folder))


def test_both_schemas_mean_the_same_by_the_same_names() -> None:
    ours: Any = Dictionary.format.schema()
    edits: Any = EditArtifact.format.schema()
    shared = set(ours["$defs"]) & set(edits["$defs"])
    assert {"DictionaryFields", "FileEntry", "Producer", "Site"} - shared == {"DictionaryFields"}
    assert {name: edits["$defs"][name] for name in shared} == {
        name: ours["$defs"][name] for name in shared
    }
    embedded, sealed = edits["$defs"]["DictionaryFields"], ours["$defs"]["SealedDictionary"]
    for name, field in embedded["properties"].items():
        assert sealed["properties"][name] == field


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


def test_a_dictionary_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    theirs = {
        "cfg.json": b'{"architecture": "standard", "metadata": {"sae_lens_version": "6"}}',
        "sae_weights.safetensors": b"weeks of training",
    }
    for name, data in theirs.items():
        (tmp_path / name).write_bytes(data)
    for save in (tiny().save_pretrained, partial(salve.save_saelens, tiny())):
        with pytest.raises(InputError, match=r"cfg\.json already that salve_plugin did not write"):
            save(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == theirs
    # Damaged, it is nobody's: what a disk has hurt can be saved anew.
    (tmp_path / "cfg.json").write_bytes(theirs["cfg.json"][:-1])
    assert Dictionary.verify(tiny().save_pretrained(tmp_path)) == tiny().digest


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
    assert dictionary.digest in card.text
    assert "share of latents" not in card.text


def test_another_dictionary_gets_another_card_but_peoples_words_stay(tmp_path: Path) -> None:
    dictionary_of("topk", k=3).save_pretrained(tmp_path)
    other = dictionary_of("l1")
    other.save_pretrained(tmp_path)
    assert other.digest in (tmp_path / CARD).read_text()
    assert "- saelens" not in (tmp_path / CARD).read_text()
    assert Dictionary.from_pretrained(tmp_path).digest == other.digest
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
