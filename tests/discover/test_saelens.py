"""Dictionaries in SAELens' files: exact both ways, and refused where they cannot be."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners.archetypal import Archetypal
from salve_plugin.discover.learners.base import Learner, Tensors
from salve_plugin.discover.learners.batch_topk import BatchTopK
from salve_plugin.discover.learners.feature_choice import FeatureChoice
from salve_plugin.discover.learners.gated import Gated
from salve_plugin.discover.learners.gba import GBA
from salve_plugin.discover.learners.gradient_topk import GradientTopK
from salve_plugin.discover.learners.jumprelu import JumpReLU
from salve_plugin.discover.learners.l1 import L1
from salve_plugin.discover.learners.matryoshka import Matryoshka
from salve_plugin.discover.learners.mutual_choice import MutualChoice
from salve_plugin.discover.learners.relu_l1 import ReluL1
from salve_plugin.discover.learners.topk import TopK
from salve_plugin.discover.saelens import load_saelens, save_saelens
from salve_plugin.discover.saelens_layout import written_as
from salve_plugin.errors import ArtifactError, InputError, WriteError
from salve_plugin.site import Site

WIDTH, LATENTS = 6, 11
SITE = Site("unembed.hook_in", "fc", "in", "pooled", WIDTH)

WRITABLE = [
    ReluL1(),
    TopK(k=3),
    Archetypal(k=3),
    GradientTopK(k=3),
    JumpReLU(),
    BatchTopK(k=3),
    MutualChoice(k=3),
    FeatureChoice(k=3),
    Matryoshka(k=3),
    Gated(),
    GBA(),
]


def dictionary_of(learner: Learner, seed: int = 0) -> Dictionary:
    """A dictionary of random tensors."""
    random = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    extra = {
        name: randn(LATENTS) if name == "magnitude_bias" else 0.2 + randn(LATENTS).abs()
        for name in learner.extra
    }
    tensors: Tensors = {
        "atoms": functional.normalize(randn(LATENTS, WIDTH), dim=1),
        "encoder_weight": randn(LATENTS, WIDTH),
        "encoder_bias": randn(LATENTS),
        "decoder_bias": randn(WIDTH),
        **extra,
    }
    return Dictionary(tensors, learner, SITE, {"seed": seed})


def rows(seed: int = 1) -> Tensor:
    return 2 * torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(seed))


def saelens_code(config: Mapping[str, Any], w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """What SAELens' documentation says a code is, in double precision."""
    w = {name: tensor.double() for name, tensor in w.items()}
    u = (x.double() - w["b_dec"] * config["apply_b_dec_to_input"]) @ w["W_enc"]
    if config["architecture"] == "gated":
        magnitude = functional.relu(u * w["r_mag"].exp() + w["b_mag"])
        return torch.where(u + w["b_gate"] > 0, magnitude, 0.0)
    pre = u + w["b_enc"]
    if config["architecture"] == "topk":
        if config["rescale_acts_by_decoder_norm"]:
            pre = pre * w["W_dec"].norm(dim=1)
        kth = pre.sort(dim=1, descending=True).values[:, config["k"] - 1]
        return torch.where(pre >= kth[:, None], pre, 0.0).relu()
    if config["architecture"] == "jumprelu":
        return torch.where(pre > w["threshold"], pre, 0.0).relu()
    return functional.relu(pre)


def saelens_rows(config: Mapping[str, Any], w: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """What SAELens' documentation says a reconstruction is."""
    if config.get("rescale_acts_by_decoder_norm"):
        z = z / w["W_dec"].double().norm(dim=1)
    return z @ w["W_dec"].double() + w["b_dec"].double()


def written(
    folder: Path, architecture: str, *, norms: Any = None, **changes: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write a folder as SAELens does, with random tensors; return what is in it."""
    random = torch.Generator().manual_seed(3)
    own = {
        "standard": ("b_enc",),
        "topk": ("b_enc",),
        "jumprelu": ("b_enc", "threshold"),
        "gated": ("b_gate", "b_mag", "r_mag"),
    }
    w = {name: torch.randn(LATENTS, generator=random) for name in own.get(architecture, ())}
    norms = 0.1 + 3 * torch.rand(LATENTS, generator=random) if norms is None else norms
    atoms = functional.normalize(torch.randn(LATENTS, WIDTH, generator=random), dim=1)
    w["W_dec"] = norms[:, None] * atoms
    w["W_enc"] = torch.randn(WIDTH, LATENTS, generator=random)
    w["b_dec"] = torch.randn(WIDTH, generator=random)
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": WIDTH,
        "d_sae": LATENTS,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post"},
    }
    if architecture == "topk":
        config |= {"k": 3, "rescale_acts_by_decoder_norm": True}
    config |= changes
    save_file(w, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))
    return config, w


@pytest.mark.parametrize("learner", WRITABLE, ids=lambda learner: learner.name)
def test_the_files_code_and_reconstruct_as_the_dictionary_does(
    learner: Learner, tmp_path: Path
) -> None:
    dictionary, x = dictionary_of(learner), rows()
    save_saelens(dictionary, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    w = load_file(tmp_path / "sae_weights.safetensors")
    code = saelens_code(config, w, x)
    assert (code > 0).any()
    torch.testing.assert_close(dictionary.encode(x).double(), code, rtol=1e-5, atol=1e-5)
    back = saelens_rows(config, w, code)
    torch.testing.assert_close(dictionary(x).double(), back, rtol=1e-5, atol=1e-5)
    assert config["metadata"]["salve_plugin"]["learner"] == learner.name


def test_every_learner_that_can_be_written_is_tested() -> None:
    assert {learner.name for learner in WRITABLE} == set(written_as())


@pytest.mark.parametrize("learner", WRITABLE, ids=lambda learner: learner.name)
def test_what_was_written_is_read_again(learner: Learner, tmp_path: Path) -> None:
    dictionary, x = dictionary_of(learner), rows()
    save_saelens(dictionary, tmp_path)
    again = load_saelens(tmp_path, SITE)
    torch.testing.assert_close(again.encode(x), dictionary.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again(x), dictionary(x), rtol=1e-5, atol=1e-5)
    for name in ("atoms", "encoder_weight", "encoder_bias", "decoder_bias"):
        assert torch.equal(again.tensors[name], dictionary.tensors[name])
    assert again.meta["architecture"] == written_as()[learner.name]
    assert "salve_plugin" not in again.meta["metadata"]  # type: ignore[operator] # it is a dict


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_decoder_rows_of_any_norm_become_atoms_of_norm_1(
    architecture: str, centred: bool, tmp_path: Path
) -> None:
    config, w = written(tmp_path, architecture, apply_b_dec_to_input=centred)
    dictionary, x = load_saelens(tmp_path, SITE), rows()
    code = saelens_code(config, w, x)
    # With rescale_acts_by_decoder_norm, SAELens' own codes are those of atoms of norm 1.
    norms = w["W_dec"].double().norm(dim=1)
    larger = code if architecture == "topk" else code * norms
    torch.testing.assert_close(dictionary.encode(x).double(), larger, rtol=1e-5, atol=1e-5)
    back = saelens_rows(config, w, code)
    torch.testing.assert_close(dictionary(x).double(), back, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dictionary.atoms.norm(dim=1), torch.ones(LATENTS))


def test_topk_is_read_without_rescaling_only_if_all_norms_are_the_same(tmp_path: Path) -> None:
    equal = torch.full((LATENTS,), 2.5)
    config, w = written(tmp_path, "topk", norms=equal, rescale_acts_by_decoder_norm=False)
    dictionary, x = load_saelens(tmp_path, SITE), rows()
    code = saelens_code(config, w, x)
    torch.testing.assert_close(dictionary.encode(x).double(), 2.5 * code, rtol=1e-5, atol=1e-5)
    back = saelens_rows(config, w, code)
    torch.testing.assert_close(dictionary(x).double(), back, rtol=1e-5, atol=1e-5)

    written(tmp_path, "topk", rescale_acts_by_decoder_norm=False)
    with pytest.raises(InputError, match="would change which latents are the k largest"):
        load_saelens(tmp_path, SITE)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    _, w = written(tmp_path, "standard")
    halves = {name: tensor.bfloat16() for name, tensor in w.items()}
    save_file(halves, tmp_path / "sae_weights.safetensors")
    dictionary = load_saelens(tmp_path, SITE)
    assert dictionary.atoms.dtype == torch.float32
    torch.testing.assert_close(dictionary.decoder_bias, halves["b_dec"].float(), rtol=0, atol=0)


def test_fields_of_older_versions_are_understood(tmp_path: Path) -> None:
    config, _ = written(tmp_path, "standard", normalize_activations=False, activation_fn_str="relu")
    for name in ("architecture", "metadata", "reshape_activations"):
        del config[name]
    hook = {"hook_point": "blocks.1.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(config | hook))
    dictionary = load_saelens(tmp_path, SITE)
    assert dictionary.learner == "relu_l1"
    assert dictionary.meta["metadata"] == {"hook_name": "blocks.1.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"hook_name": "blocks.1.attn.hook_z"}))
    with pytest.raises(InputError, match="reshape_activations = 'hook_z'"):
        load_saelens(tmp_path, SITE)


def test_a_learner_without_architecture_is_refused_with_those_that_have_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=r"learner 'l1'; it can represent those of \['archetypal'"):
        save_saelens(dictionary_of(L1()), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("learner", "name", "message"),
    [(JumpReLU(), "threshold", "rectifies codes"), (Gated(), "gain", "stores its logarithm")],
)
def test_values_that_the_files_cannot_hold_are_refused(
    learner: Learner, name: str, message: str, tmp_path: Path
) -> None:
    tensors = {key: value.clone() for key, value in dictionary_of(learner).tensors.items()}
    tensors[name][4] = -0.5
    with pytest.raises(InputError, match=rf"{name} of latent 4 is -0\.5: SAELens {message}"):
        save_saelens(Dictionary(tensors, learner, SITE), tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "temporal"}, InputError, r"architecture 'temporal'; salve_plugin reads"),
        ({"normalize_activations": "layer_norm"}, InputError, "normalize_activations = 'layer_no"),
        ({"normalize_activations": "expected_average_only_in"}, InputError, "Fold it into"),
        ({"normalize_activations": True}, InputError, "normalize_activations = True"),
        ({"reshape_activations": "hook_z"}, InputError, "reshape_activations = 'hook_z'"),
        ({"activation_fn_str": "tanh-relu"}, InputError, "activation_fn = 'tanh-relu'"),
        ({"finetuning_scaling_factor": True}, InputError, "finetuning_scaling_factor = True"),
        ({"d_in": 7}, InputError, "d_in = 7, but site 'unembed.hook_in' has 6 features"),
        ({"d_sae": 12}, ArtifactError, r"of shape \(11, 6\); cfg.json asks for"),
        ({"d_sae": "absent"}, ArtifactError, "d_sae = None"),
        ({"architecture": "topk", "k": 12}, ArtifactError, "k = 12; expected a whole number"),
        ({"architecture": "jumprelu"}, ArtifactError, "holds .* a dictionary of architecture 'jum"),
        ({"metadata": 3}, ArtifactError, "does not hold the fields"),
    ],
)
def test_what_a_dictionary_cannot_do_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    config, _ = written(tmp_path, "standard")
    changed = {name: value for name, value in (config | changes).items() if value != "absent"}
    (tmp_path / "cfg.json").write_text(json.dumps(changed))
    with pytest.raises(error, match=message):
        load_saelens(tmp_path, SITE)


Damage = Callable[[dict[str, Tensor]], None]


def _nan(w: dict[str, Tensor]) -> None:
    w["W_enc"][2, 3] = torch.nan


def _extra(w: dict[str, Tensor]) -> None:
    w["scaling_factor"] = torch.full((LATENTS,), 2.0)


def _zero(w: dict[str, Tensor]) -> None:
    w["W_dec"][5] = 0


def _integers(w: dict[str, Tensor]) -> None:
    w["b_enc"] = w["b_enc"].int()


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_nan, ArtifactError, "W_enc in .* holds NaN"),
        (_extra, ArtifactError, "holds .*'scaling_factor'"),
        (_zero, InputError, "decoder row 5 in .* is zero"),
        (_integers, ArtifactError, "b_enc in .* is torch.int32"),
    ],
)
def test_damaged_tensors_are_refused(
    damage: Damage, error: type[Exception], message: str, tmp_path: Path
) -> None:
    _, w = written(tmp_path, "standard")
    damage(w)
    save_file(w, tmp_path / "sae_weights.safetensors")
    with pytest.raises(error, match=message):
        load_saelens(tmp_path, SITE)


def test_damaged_or_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*cfg\.json"):
        load_saelens(tmp_path, SITE)
    written(tmp_path, "standard")
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"cannot read .*sae_weights"):
        load_saelens(tmp_path, SITE)
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"cannot read .*cfg\.json"):
        load_saelens(tmp_path, SITE)


def test_a_folder_that_cannot_be_made_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"cannot write .*file"):
        save_saelens(dictionary_of(TopK(k=3)), tmp_path / "file" / "sae")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"architecture": []}',
        '{"architecture": {}}',
        '{"metadata": []}',
        '{"metadata": 0}',
        '{"metadata": ""}',
        '{"hook_name": 3}',
        '{"hook_point": ["hook_z"]}',
        "[]",
        "3",
    ],
    ids=lambda text: str(text)[:24],
)
def test_any_contents_of_the_configuration_end_in_an_error_of_ours(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "cfg.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"cfg\.json"):
        load_saelens(tmp_path, Site("rows", "", "out", "pooled", 6))
