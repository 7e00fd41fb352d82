"""What became of a commit whose answer never came."""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from salve_plugin.errors import HubConflictError
from salve_plugin.store.hub.history import commits_since
from salve_plugin.store.hub.staged import Staged

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAX_PULL_REQUESTS = 20  # newest ones that are looked through


@dataclass(frozen=True)
class Landed:
    """A change that is on the Hub: its commit, and the revision of its pull request if any."""

    commit: str
    pull_request: str | None = None


def landed(client: "HfApi", repo_id: str, branch: str, staged: Staged, head: str) -> Landed | None:
    """Return the commit that holds the staged change, None if the branch is where it was.

    Raises:
        HubConflictError: if the branch has other commits since `head`; names the first of them.
        HubError: as `commits_since`.
    """
    since = list(commits_since(client, repo_id, branch, head))
    if not since:
        return None
    # The commit names its parent, so if it was made, it is the first one after the head.
    first = since[-1]
    if staged.is_in(client, repo_id, first.id):
        return Landed(first.id)
    raise HubConflictError(
        f"somebody else committed to '{branch}' of {repo_id} first: {first.id} "
        f"({first.title!r} by {', '.join(first.authors) or 'unknown'}). Nothing of yours was "
        "committed and nothing of theirs overwritten; look at it, then make the same call again",
        winner=first.id,
    )


def open_pull_request(client: "HfApi", repo_id: str, staged: Staged, head: str) -> Landed | None:
    """Return an open pull request on `head` that holds exactly the staged change."""
    refs = client.list_repo_refs(repo_id, include_pull_requests=True).pull_requests or []
    newest = sorted(refs, key=lambda ref: int(ref.name), reverse=True)[:MAX_PULL_REQUESTS]
    for ref in newest:
        if (
            # Two are asked for: a second commit tells enough.
            len(list(islice(commits_since(client, repo_id, ref.ref, head), 2))) == 1
            and staged.is_in(client, repo_id, ref.target_commit)
            and client.get_discussion_details(repo_id, int(ref.name)).status in ("open", "draft")
        ):
            return Landed(ref.target_commit, ref.ref)
    return None
