"""Evidence belongs to its network: whatever combines two pieces of it compares them."""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import salve_plugin as salve
from salve_plugin import Activations, Dictionary, Edit, EditArtifact, Features, Gate, HookedModel
from salve_plugin.control.base import same_base
from salve_plugin.demo import digits
from salve_plugin.discover.recording.shards import INDEX_FILE
from salve_plugin.errors import ArtifactError, BaseMismatchError, InputError
from salve_plugin.network import check_choice, network_digest
from salve_plugin.store import digest
from salve_plugin.store.digest import state_digest
from salve_plugin.validate.heat_maps import grad_fam_pictures

WEIGHTS = Path(__file__).parent / "fixtures" / "digits_vit.safetensors"
HIDDEN = "blocks.0.mlp.hook_post"
REFUSED = r"is of network [0-9a-f]{12}, .* of [0-9a-f]{12}; .*on_base_mismatch='warn'"


@dataclass(frozen=True)
class Evidence:
    """A recording, and what was made from it."""

    acts: Activations
    sae: Dictionary
    features: Features


def network() -> HookedModel:
    return salve.attach(digits.load("vit", WEIGHTS))


def recorded(hooked: HookedModel, split: digits.Split, folder: Path) -> Evidence:
    acts = salve.record(hooked, split.batches(), folder=folder, progress=False)
    sae = salve.fit(acts, "l1", n_latents=16, steps=100)
    return Evidence(acts, sae, salve.profile(sae, acts))


def retrained(hooked: HookedModel) -> HookedModel:
    """Return a copy as after a step of training: every parameter a little different."""
    model = copy.deepcopy(hooked.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    return salve.attach(model)


def hidden_edit(hooked: HookedModel) -> Edit:
    directions = torch.zeros(1, hooked.site(HIDDEN).width)
    directions[0, :2] = 0.5**0.5
    return salve.edit_at(hooked, HIDDEN, Gate(directions, 0.5))


LATENTS = salve.SuppressClass(3, by="latents", rows=None, tries=1)


@pytest.fixture(scope="module")
def few(digits_train: digits.Split) -> digits.Split:
    """Four hundred digits."""
    return digits.Split(digits_train.images[:400], digits_train.labels[:400])


@pytest.fixture(scope="module")
def own(few: digits.Split, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of the trained network."""
    return recorded(network(), few, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def foreign(few: digits.Split, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of one that was trained on."""
    return recorded(retrained(network()), few, tmp_path_factory.mktemp("foreign"))


def _alpha_crit(hooked: HookedModel, evidence: Evidence, **how: Any) -> object:
    direction = nn.functional.one_hot(torch.tensor([3]), 64).float()
    edit = salve.edit_at(hooked, "unembed.hook_in", Gate(direction, 1.0))
    return salve.alpha_crit(hooked, edit, evidence.acts, classes=[3], **how)


def _choose(hooked: HookedModel, evidence: Evidence, **how: Any) -> object:
    return salve.choose(
        hooked, LATENTS, evidence.acts, dictionary=evidence.sae, features=evidence.features, **how
    )


def _quality(hooked: HookedModel, evidence: Evidence, **how: Any) -> object:
    return salve.quality(evidence.sae, evidence.acts, hooked=hooked, controls=(), **how)


def _suppress(hooked: HookedModel, evidence: Evidence, **how: Any) -> Edit:
    return salve.suppress(hooked, evidence.sae, latent=2, strength=1.0, **how)


def _enhance(hooked: HookedModel, evidence: Evidence, **how: Any) -> Edit:
    return salve.enhance(hooked, evidence.sae, latent=2, strength=1.0, **how)


def _explain(hooked: HookedModel, evidence: Evidence, **how: Any) -> object:
    return salve.LayerGradFam.of(hooked, evidence.sae, **how)


def _maximize(hooked: HookedModel, evidence: Evidence, **how: Any) -> object:
    return salve.maximize(hooked, evidence.sae, 2, size=(1, 32, 32), steps=1, **how)


Combined = Callable[..., object]

OF_A_RECORDING: list[Combined] = [_alpha_crit, _choose, _quality]
OF_A_DICTIONARY: list[Combined] = [_suppress, _enhance, _explain, _maximize]
EVERY = [*OF_A_RECORDING, *OF_A_DICTIONARY]


@pytest.mark.parametrize("combined", EVERY)
def test_evidence_of_another_network_is_refused_unless_a_warning_is_enough(
    combined: Combined, own: Evidence
) -> None:
    other = retrained(network())
    with pytest.raises(BaseMismatchError, match=REFUSED):
        combined(other, own)
    with pytest.warns(UserWarning, match=REFUSED):
        assert combined(other, own, on_base_mismatch="warn") is not None


def test_other_answers_to_a_mismatch_are_refused() -> None:
    with pytest.raises(InputError, match="'error' or 'warn', not 'ignore'"):
        check_choice("ignore")


@pytest.mark.parametrize("combined", EVERY)
def test_the_head_is_taken_as_it_is(combined: Combined, own: Evidence) -> None:
    hooked = network()
    with torch.no_grad():
        hooked.model.get_parameter("head.weight").mul_(1.5)
        hooked.model.get_parameter("head.bias").add_(0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        combined(hooked, own)


@pytest.mark.parametrize("combined", OF_A_RECORDING)
def test_a_recording_is_stale_while_a_hidden_edit_is_applied(
    combined: Combined, own: Evidence
) -> None:
    hooked = network()
    edit = hidden_edit(hooked)
    with edit.applied(hooked), pytest.raises(BaseMismatchError, match="the recording is of"):
        combined(hooked, own)
    combined(hooked, own)


@pytest.mark.parametrize("combined", OF_A_DICTIONARY)
def test_a_dictionary_keeps_its_network_while_edits_are_applied(
    combined: Combined, own: Evidence
) -> None:
    hooked = network()
    with hidden_edit(hooked).applied(hooked), warnings.catch_warnings():
        warnings.simplefilter("error")
        combined(hooked, own)


def test_what_is_made_of_an_edited_model_belongs_to_that(few: digits.Split, tmp_path: Path) -> None:
    hooked = network()
    edit = hidden_edit(hooked)
    with edit.applied(hooked):
        evidence = recorded(hooked, few, tmp_path)
        for combined in EVERY:
            combined(hooked, evidence)
    for combined in EVERY:
        with pytest.raises(BaseMismatchError, match=REFUSED):
            combined(hooked, evidence)


def test_a_hidden_dictionary_is_accepted_while_its_own_edit_is_applied(few: digits.Split) -> None:
    hooked = network()
    acts = salve.record(hooked, few.batches(), HIDDEN, progress=False)
    sae = salve.fit(acts, "l1", n_latents=8, steps=20)
    edit = salve.suppress(hooked, sae, latent=0, strength=1.0)
    with edit.applied(hooked):
        salve.suppress(hooked, sae, latent=1, strength=1.0)
        salve.LayerGradFam.of(hooked, sae)
        EditArtifact.of(hooked, edit, dictionary=sae)


def test_a_dictionary_and_a_recording_of_two_networks_are_refused(
    own: Evidence, foreign: Evidence
) -> None:
    cases: list[Callable[..., object]] = [
        lambda **how: salve.profile(own.sae, foreign.acts, **how),
        lambda **how: salve.quality(own.sae, foreign.acts, controls=(), **how),
        lambda **how: salve.quality(own.sae, own.acts, others=[foreign.sae], controls=(), **how),
        lambda **how: salve.choose(
            network(), LATENTS, own.acts, dictionary=own.sae, features=foreign.features, **how
        ),
        lambda **how: salve.choose(
            network(), LATENTS, own.acts, dictionary=foreign.sae, features=own.features, **how
        ),
    ]
    for combined in cases:
        with pytest.raises(BaseMismatchError, match=REFUSED):
            combined()
        with pytest.warns(UserWarning, match=REFUSED):
            combined(on_base_mismatch="warn")


def test_pictures_of_an_edit_need_the_dictionary_s_network(
    own: Evidence, few: digits.Split
) -> None:
    edit = _suppress(network(), own)
    assert len(grad_fam_pictures(network(), own.sae, edit, few.images[:1])) == 1
    with pytest.raises(BaseMismatchError, match=REFUSED):
        grad_fam_pictures(retrained(network()), own.sae, edit, few.images[:1])
    with pytest.warns(UserWarning, match=REFUSED):
        grad_fam_pictures(
            retrained(network()), own.sae, edit, few.images[:1], on_base_mismatch="warn"
        )


def test_the_digest_is_that_of_every_tensor_but_the_classifier_s(own: Evidence) -> None:
    hooked = network()
    tensors = dict(hooked.model.named_parameters()) | dict(hooked.model.named_buffers())
    body = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] != "head"}
    assert len(body) == len(tensors) - 2
    expected = state_digest(body)
    assert network_digest(hooked) == expected
    assert own.acts.network_sha256 == own.sae.network == own.features.network == expected
    for name, tensor in tensors.items():
        changed = {**tensors, name: tensor + 1}
        assert (network_digest(hooked, changed) == expected) == (name not in body)


def test_every_piece_of_evidence_says_its_network(own: Evidence, tmp_path: Path) -> None:
    hooked, known = network(), own.acts.network_sha256
    assert Activations.load(own.acts.folder).network_sha256 == known
    own.sae.save_pretrained(tmp_path)
    assert Dictionary.from_pretrained(tmp_path).network == known
    choice = salve.choose(hooked, LATENTS, own.acts, dictionary=own.sae, features=own.features)
    assert choice.edit.base.network == known
    crit = salve.alpha_crit(hooked, choice.edit, own.acts)
    assert crit.network == known
    with hidden_edit(hooked).applied(hooked):
        assert _suppress(hooked, own).base.network == known  # an edit's base has no edits on it


def test_nothing_is_refused_where_nothing_is_known(own: Evidence, tmp_path: Path) -> None:
    index = json.loads((own.acts.folder / INDEX_FILE).read_text())
    del index["network_sha256"]
    for shard in index["shards"]:
        (tmp_path / shard["file"]).write_bytes((own.acts.folder / shard["file"]).read_bytes())
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    acts = Activations.load(tmp_path)
    assert acts.network_sha256 is None
    sae = copy.deepcopy(own.sae)
    sae.meta = {name: value for name, value in sae.meta.items() if name != "network_sha256"}
    silent = Evidence(acts, sae, salve.profile(sae, acts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for combined in EVERY:
            combined(retrained(network()), silent)


def test_an_artifact_compares_its_edit_its_dictionary_and_its_critical_strengths(
    own: Evidence, foreign: Evidence, tmp_path: Path
) -> None:
    hooked, other = network(), retrained(network())
    edit = _suppress(hooked, own)
    crit = salve.alpha_crit(hooked, edit, own.acts)
    saved = EditArtifact.of(
        hooked, edit, dictionary=own.sae, alpha_crit=crit, embed_dictionary=True
    )
    saved.save_pretrained(tmp_path)
    loaded = EditArtifact.from_pretrained(tmp_path)
    assert loaded.digest == saved.digest
    assert loaded.alpha_crit is not None
    assert loaded.alpha_crit.network == loaded.edit.base.network == own.acts.network_sha256
    with pytest.raises(
        BaseMismatchError, match=r"the edit's base is of .*, the critical strengths"
    ):
        EditArtifact(edit, alpha_crit=replace(crit, network=foreign.acts.network_sha256))
    EditArtifact(edit, alpha_crit=replace(crit, network=None))
    with pytest.warns(UserWarning, match=REFUSED):
        moved = _suppress(other, own, on_base_mismatch="warn")
    with pytest.raises(BaseMismatchError, match=r"the edit's base is of .*, the dictionary of .*"):
        EditArtifact(moved, dictionary=own.sae)
    EditArtifact(moved)


def test_bases_of_two_networks_are_two_bases(own: Evidence) -> None:
    base = _suppress(network(), own).base
    assert same_base(base, replace(base, network=None))
    assert not same_base(base, replace(base, network="0" * 64))


def test_choosing_hashes_the_model_no_more_often_for_more_latents(
    own: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked = network()
    weights = {tensor.data_ptr() for tensor in hooked.model.state_dict().values()}
    hashed: list[str] = []
    elements = digest._elements

    def counted(name: str, tensor: Any) -> memoryview:
        if tensor.data_ptr() in weights:
            hashed.append(name)
        return elements(name, tensor)

    monkeypatch.setattr(digest, "_elements", counted)
    counts = []
    for candidates in (1, 14):
        hashed.clear()
        goal = replace(LATENTS, tries=candidates)
        choice = salve.choose(hooked, goal, own.acts, dictionary=own.sae, features=own.features)
        assert len(choice.tried) + len(choice.unreachable) >= candidates
        counts.append(len(hashed))
    assert counts[0] == counts[1] < 4 * len(weights)


def test_a_file_whose_parts_are_of_two_networks_is_refused(
    own: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked = network()
    edit = _suppress(hooked, own)
    crit = salve.alpha_crit(hooked, edit, own.acts, classes=[3])
    with monkeypatch.context() as patch:
        patch.setattr("salve_plugin.share.artifact.check_networks", lambda *parts: None)
        EditArtifact(edit, alpha_crit=replace(crit, network="0" * 64)).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"contradicts itself: the edit's base is of network"):
        EditArtifact.from_pretrained(tmp_path)
