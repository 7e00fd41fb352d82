"""Tags name one commit for good: they are made once and never moved."""

from typing import TYPE_CHECKING

from salve_plugin.errors import HubConflictError, HubError
from salve_plugin.store.hub.patience import patiently
from salve_plugin.store.hub.staged import Staged

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_tag(client: "HfApi", repo_id: str, tag: str | None, staged: Staged) -> None:
    """Raise if the tag names a commit with other content, before anything is pushed.

    Raises:
        HubConflictError: names that commit.
    """
    commit = None if tag is None else _target(client, repo_id, tag)
    if commit is not None and not patiently(
        f"look at tag '{tag}' of {repo_id}", lambda: staged.is_in(client, repo_id, commit)
    ):
        raise HubConflictError(
            f"tag '{tag}' of {repo_id} names commit {commit}, which holds something else; tags are "
            "never moved. Choose another tag",
            winner=commit,
        )


def set_tag(client: "HfApi", repo_id: str, tag: str, commit: str, staged: Staged) -> None:
    """Let a tag name a commit; one that names another with the same content stays.

    Raises:
        HubConflictError: if it names another one.
        HubError: if it could not be made; the commit stays.
    """
    named = _target(client, repo_id, tag)
    if named is None:
        try:
            patiently(
                f"tag commit {commit} of {repo_id} as '{tag}'",
                # `exist_ok`, because an earlier attempt may have made it and its answer be lost. It
                # hides a tag that somebody else made meanwhile, too: hence the question afterwards.
                lambda: client.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True),
            )
        except HubError as error:
            raise HubError(
                f"commit {commit} of {repo_id} is made, but not tagged: {error} Make the same "
                "call again to tag it",
                reason=error.reason,
                status=error.status,
            ) from error
        named = _target(client, repo_id, tag)
    if named != commit:
        check_tag(client, repo_id, tag, staged)


def _target(client: "HfApi", repo_id: str, tag: str) -> str | None:
    tags = patiently(f"list the tags of {repo_id}", lambda: client.list_repo_refs(repo_id)).tags
    return next((ref.target_commit for ref in tags if ref.name == tag), None)
