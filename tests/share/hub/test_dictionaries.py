"""Dictionaries on a Hub: pushed, pulled, and found again by the artifacts that refer to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import LoopbackHub
from huggingface_hub import HfApi, ModelCard
from small_artifacts import altered
from torch.nn import functional

import salve_plugin as salve
from salve_plugin.control.edit import Edit
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.learners import create
from salve_plugin.errors import ArtifactError, HubConflictError, HubError, InputError
from salve_plugin.share.artifact import EditArtifact
from salve_plugin.store.hub.push import Pushed
from salve_plugin.store.reference import Reference

WIDTH = 4
FILES = ("README.md", "cfg.json", "sae_weights.safetensors")

Push = Callable[..., Pushed]
Pull = Callable[..., Dictionary]


def dictionary_of(learner: str, seed: int = 0) -> Dictionary:
    random = torch.Generator().manual_seed(seed)
    tensors = {
        "atoms": functional.normalize(torch.randn(7, WIDTH, generator=random), dim=1),
        "encoder_weight": torch.randn(7, WIDTH, generator=random),
        "encoder_bias": torch.randn(7, generator=random),
        "decoder_bias": torch.randn(WIDTH, generator=random),
    }
    site = salve.Site("unembed.hook_in", "fc", "in", "pooled", WIDTH, readers=("fc",))
    return Dictionary(tensors, create(learner, {}), site, {"seed": seed})


@pytest.fixture
def dictionary() -> Dictionary:
    return dictionary_of("topk")


@pytest.fixture
def push_dictionary(hub: LoopbackHub, repo_id: str) -> Push:
    """Push a dictionary to the test's repository as alice."""

    def push_to_hub(dictionary: Dictionary, **options: Any) -> Pushed:
        return dictionary.push_to_hub(repo_id, token="hf_alice", endpoint=hub.url, **options)

    return push_to_hub


@pytest.fixture
def pull_dictionary(hub: LoopbackHub, repo_id: str) -> Pull:
    """Pull a dictionary from the test's repository, as nobody unless told otherwise."""

    def from_pretrained(**options: Any) -> Dictionary:
        return Dictionary.from_pretrained(repo_id, endpoint=hub.url, **options)

    return from_pretrained


@pytest.fixture
def edit_of(tiny_edit: Edit) -> Callable[[Dictionary], Edit]:
    """Make an edit with an atom of a dictionary."""

    def edit(dictionary: Dictionary) -> Edit:
        direction, digest = dictionary.atoms[5], dictionary.digest
        return altered(tiny_edit, direction=direction, dictionary_digest=digest)

    return edit


@pytest.mark.parametrize("learner", ["topk", "l1"])
def test_what_was_pushed_comes_back_to_the_bit_and_both_name_the_commit(
    learner: str, push_dictionary: Push, pull_dictionary: Pull, repo_id: str, tmp_path: Path
) -> None:
    dictionary = dictionary_of(learner)
    assert dictionary.origin is None
    pushed = push_dictionary(dictionary)
    loaded = pull_dictionary()
    assert loaded.digest == dictionary.digest
    assert loaded.origin == dictionary.origin == pushed.reference
    assert (pushed.reference.repo_id, pushed.created) == (repo_id, True)
    loaded.save_pretrained(tmp_path / "pulled")
    dictionary.save_pretrained(tmp_path / "saved")
    for name in FILES:
        assert (tmp_path / "pulled" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


def test_pushing_again_makes_no_commit_and_another_one_is_all_there_is(
    push_dictionary: Push,
    pull_dictionary: Pull,
    dictionary: Dictionary,
    hub: LoopbackHub,
    repo_id: str,
) -> None:
    first = push_dictionary(dictionary)
    again = push_dictionary(dictionary_of("topk"))
    assert (again.created, again.reference) == (False, first.reference)
    other = dictionary_of("l1", seed=1)
    push_dictionary(other)
    assert pull_dictionary().digest == other.digest
    pinned = pull_dictionary(revision=first.reference.commit)
    assert (pinned.digest, pinned.origin) == (dictionary.digest, first.reference)
    api = HfApi(endpoint=hub.url)
    assert sorted(api.list_repo_files(repo_id)) == [".gitattributes", *FILES]
    card = ModelCard.load(api.hf_hub_download(repo_id, "README.md"))
    assert other.digest in card.text
    assert card.data.tags == ["salve_plugin", "sparse-autoencoder", "interpretability"]


def test_a_pull_request_leaves_the_dictionary_where_it_was(
    push_dictionary: Push, pull_dictionary: Pull, dictionary: Dictionary
) -> None:
    push_dictionary(dictionary_of("l1"))
    pushed = push_dictionary(dictionary, create_pr=True)
    assert pushed.pull_request == "refs/pr/1"
    assert dictionary.origin is None
    assert pull_dictionary(revision="refs/pr/1").digest == dictionary.digest


def test_a_private_dictionary_needs_a_token_and_a_tag_stays(
    push_dictionary: Push, pull_dictionary: Pull, dictionary: Dictionary
) -> None:
    push_dictionary(dictionary, private=True, tag="v1")
    with pytest.raises(HubError, match="private repository"):
        pull_dictionary()
    found = pull_dictionary(token="hf_alice-read", revision="v1")
    assert found.digest == dictionary.digest
    with pytest.raises(HubConflictError, match="tags are never moved"):
        push_dictionary(dictionary_of("topk", seed=1), tag="v1")


def test_a_file_that_was_hurt_in_the_cache_is_downloaded_again(
    push_dictionary: Push, pull_dictionary: Pull, dictionary: Dictionary, hf_home: Path
) -> None:
    push_dictionary(dictionary)
    pull_dictionary()
    for name in ("cfg.json", "sae_weights.safetensors"):
        (path,) = hf_home.glob(f"hub/models--*/snapshots/*/{name}")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.resolve().write_bytes(data)
        with pytest.raises(ArtifactError, match="force_download"):
            pull_dictionary(local_files_only=True)
        assert pull_dictionary().digest == dictionary.digest
        assert pull_dictionary(local_files_only=True).digest == dictionary.digest


def test_a_dictionary_of_saelens_on_the_hub_is_refused_with_what_reads_it(
    push_dictionary: Push, pull_dictionary: Pull, dictionary: Dictionary, hub: LoopbackHub
) -> None:
    repo_id = push_dictionary(dictionary).reference.repo_id
    api = HfApi(endpoint=hub.url, token="hf_alice")
    api.upload_file(path_or_fileobj=b'{"d_in": 4}', path_in_repo="cfg.json", repo_id=repo_id)
    with pytest.raises(ArtifactError, match="load_saelens"):
        pull_dictionary()


# --- artifacts that refer to one -----------------------------------------------------------------


def test_an_artifact_finds_its_dictionary_by_commit_and_digest(
    push_dictionary: Push,
    dictionary: Dictionary,
    edit_of: Callable[[Dictionary], Edit],
    hub: LoopbackHub,
    repo_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pushed = push_dictionary(dictionary, subfolder="dictionary")
    artifact = EditArtifact(edit_of(dictionary), dictionary=dictionary)
    artifact.push_to_hub(repo_id, subfolder="edit", token="hf_alice", endpoint=hub.url)
    push_dictionary(dictionary_of("topk", seed=1), subfolder="dictionary")  # main moves on
    pulled = EditArtifact.from_pretrained(repo_id, subfolder="edit", endpoint=hub.url)
    assert (pulled.dictionary, pulled.dictionary_at) == (None, pushed.reference)
    # A folder of that name in the working directory is none of the artifact's business.
    (tmp_path / repo_id / "dictionary").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = pulled.load_dictionary(endpoint=hub.url)
    assert (found.digest, found.origin) == (dictionary.digest, pushed.reference)
    hub.clear()
    assert pulled.load_dictionary(endpoint=hub.url).digest == dictionary.digest
    assert hub.log() == []  # it is pinned, and in the cache
    offline = pulled.load_dictionary(endpoint=hub.url, local_files_only=True)
    assert offline.digest == dictionary.digest
    with pytest.raises(HubError, match="call once with a connection"):
        pulled.load_dictionary(cache_dir=tmp_path / "empty", local_files_only=True)
    for name in ("revision", "subfolder"):
        with pytest.raises(InputError, match=rf"{name} is given, .*{pushed.reference.commit}"):
            pulled.load_dictionary(endpoint=hub.url, **{name: "v2"})  # type: ignore[arg-type] # of any
    with pytest.raises(InputError, match="there is no argument 'folder'"):
        pulled.load_dictionary(folder="here")  # type: ignore[call-arg] # there is none
    # An edit made with the pulled dictionary refers to the same place.
    assert EditArtifact(edit_of(found), dictionary=found).dictionary_at == pushed.reference


def test_another_dictionary_at_the_place_is_refused(
    push_dictionary: Push,
    dictionary: Dictionary,
    edit_of: Callable[[Dictionary], Edit],
    hub: LoopbackHub,
) -> None:
    place = push_dictionary(dictionary_of("topk", seed=1)).reference
    artifact = EditArtifact(edit_of(dictionary), dictionary_at=place)
    with pytest.raises(ArtifactError, match=rf"{place.commit} is .* refers to the wrong place"):
        artifact.load_dictionary(endpoint=hub.url)
    gone = Reference(place.repo_id, "0" * 40)
    artifact = EditArtifact(edit_of(dictionary), dictionary_at=gone)
    with pytest.raises((ArtifactError, HubError), match="0" * 40):
        artifact.load_dictionary(endpoint=hub.url)


def test_without_a_place_there_is_the_embedded_dictionary_or_an_error_that_says_what_to_do(
    dictionary: Dictionary, edit_of: Callable[[Dictionary], Edit], tmp_path: Path
) -> None:
    edit = edit_of(dictionary)
    whole = EditArtifact(edit, dictionary=dictionary, embed_dictionary=True)
    loaded = EditArtifact.from_pretrained(whole.save_pretrained(tmp_path))
    assert loaded.load_dictionary().digest == dictionary.digest
    with pytest.raises(InputError, match=r"does not say where .*embed_dictionary=True"):
        EditArtifact(edit).load_dictionary()
    alone = EditArtifact(altered(edit, dictionary_digest=None))
    with pytest.raises(InputError, match="does not come from a dictionary"):
        alone.load_dictionary()


def test_a_dictionary_that_was_changed_after_the_push_is_not_referred_to(
    push_dictionary: Push, dictionary: Dictionary, edit_of: Callable[[Dictionary], Edit]
) -> None:
    push_dictionary(dictionary)
    changed = dictionary.double()
    assert EditArtifact(edit_of(changed), dictionary=changed).dictionary_at is None
