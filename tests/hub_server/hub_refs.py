"""Branches, tags, pull requests and discussions."""

from typing import Any

from hub_git import GitError
from hub_http import Answer, HubError, Request, answer_json
from hub_repos import Repository, now
from hub_state import Hub
from hub_users import signed_in

KINDS = {"refs/heads/": "branches", "refs/tags/": "tags", "refs/pr/": "pullRequests"}


def get_refs(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`GET /api/models/ID/refs`; pull requests only with `?include_prs=1`."""
    told: dict[str, list[dict[str, str]]] = {"converts": [], **{key: [] for key in KINDS.values()}}
    for ref, commit in repository.git.refs().items():
        for prefix, key in KINDS.items():
            if ref.startswith(prefix):
                name = ref.removeprefix(prefix)
                told[key].append({"name": name, "ref": ref, "targetCommit": commit})
    if not request.flag("include_prs"):
        del told["pullRequests"]
    return answer_json(told)


def _create(repository: Repository, ref: str, commit: str, message: str, author: str) -> Answer:
    with repository.git.lock:
        if ref in repository.git.refs():
            raise HubError(409, f"Reference {ref} already exists")
        try:
            repository.git.create_ref(ref, commit, message, author)
        except GitError as error:
            raise HubError(400, f"Invalid reference: {error}") from error
    return answer_json({})


def _delete(repository: Repository, ref: str) -> Answer:
    with repository.git.lock:
        if ref not in repository.git.refs():
            raise HubError(404, f"Reference {ref} does not exist", "RevisionNotFound")
        repository.git.delete_ref(ref)
    return answer_json({})


def create_branch(hub: Hub, request: Request, repository: Repository, branch: str) -> Answer:
    """`POST /api/models/ID/branch/NAME`."""
    start = repository.find(request.json().get("startingPoint") or "main")
    return _create(repository, f"refs/heads/{branch}", start, "", "hub")


def create_tag(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`POST /api/models/ID/tag/REV`: with a message, the tag is an object of its own."""
    asked, user = request.json(), signed_in(request)
    ref, message = f"refs/tags/{asked['tag']}", asked.get("message") or ""
    return _create(repository, ref, repository.find(revision), message, user.name)


def delete_branch(hub: Hub, request: Request, repository: Repository, branch: str) -> Answer:
    """`DELETE /api/models/ID/branch/NAME`."""
    return _delete(repository, f"refs/heads/{branch}")


def delete_tag(hub: Hub, request: Request, repository: Repository, tag: str) -> Answer:
    """`DELETE /api/models/ID/tag/NAME`."""
    return _delete(repository, f"refs/tags/{tag}")


def next_number(repository: Repository) -> int:
    """Return the next discussion's number; pull requests are numbered with discussions.

    The caller holds the lock until the discussion is recorded.
    """
    numbers = [each["num"] for each in repository.settings()["discussions"]]
    numbers += [int(ref[8:]) for ref in repository.git.refs() if ref.startswith("refs/pr/")]
    return 1 + max(numbers, default=0)


def record(
    repository: Repository, number: int, title: str, author: str, pull_request: bool
) -> None:
    """Open a discussion; for a pull request, `refs/pr/NUMBER` is there already."""
    opened = {
        "num": number,
        "title": title,
        "status": "draft" if pull_request else "open",
        "author": {"name": author},
        "createdAt": now(),
        "isPullRequest": pull_request,
    }
    repository.update(discussions=[*repository.settings()["discussions"], opened])


def _shown(repository: Repository, discussion: dict[str, Any]) -> dict[str, Any]:
    return {**discussion, "repo": {"name": repository.id, "type": repository.kind[:-1]}}


def create_discussion(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`POST /api/models/ID/discussions`: `upload_folder` opens its pull request with it."""
    asked, user = request.json(), signed_in(request)
    pull_request = bool(asked.get("pullRequest"))
    with repository.git.lock:
        number = next_number(repository)
        if pull_request:
            repository.git.create_ref(f"refs/pr/{number}", repository.find("main"))
        record(repository, number, asked["title"], user.name, pull_request)
    return answer_json({"num": number})


def get_discussions(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`GET /api/models/ID/discussions`, all on one page."""
    shown = [_shown(repository, each) for each in repository.settings()["discussions"]]
    return answer_json({"discussions": shown, "count": len(shown), "start": 0})


def get_discussion(hub: Hub, request: Request, repository: Repository, number: str) -> Answer:
    """`GET /api/models/ID/discussions/NUMBER`."""
    for each in repository.settings()["discussions"]:
        if str(each["num"]) == number:
            changes = {"base": "refs/heads/main", "mergeCommitId": None}
            more = {"events": [], "filesWithConflicts": [], "changes": changes, "diff": ""}
            return answer_json({**_shown(repository, each), **more})
    raise HubError(404, "Discussion not found")
