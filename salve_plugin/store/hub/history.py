"""The commits of a branch since one that is known, however long a Hub would go on listing them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from salve_plugin.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAX_PAGES = 20
"""Pages that are asked for; the Hub's hold 50 commits, and pushes end within minutes."""


@dataclass(frozen=True)
class Commit:
    """A commit as the Hub lists it."""

    id: str
    title: str
    authors: tuple[str, ...]


def commits_since(client: "HfApi", repo_id: str, revision: str, head: str) -> Iterator[Commit]:
    """Yield the commits after `head`, newest first; all of them if `head` is not among them.

    A page is asked for when it is needed. The Hub client's own `list_repo_commits` follows links
    to further pages for as long as there are some, and wherever they lead.

    Raises:
        HubError: if `head` is not on the first `MAX_PAGES` pages and there are more, or a link to
            the next one leads away from the Hub.
    """
    # With the slash, lest an address pass whose host only begins like the Hub's.
    begin = f"{client.endpoint}/"
    # A slash in the name of a branch is no step of this path.
    url = f"{begin}api/models/{repo_id}/commits/{quote(revision, safe='')}"
    for _ in range(MAX_PAGES):
        commits, following = _page(client, url)
        for commit in commits:
            if commit.id == head:
                return
            yield commit
        if following is None:
            return
        if not following.startswith(begin):
            raise HubError(
                f"the list of commits of '{revision}' of {repo_id} goes on at {following[:200]}, "
                f"which is not {client.endpoint}; is that a Hub?",
                reason="server",
            )
        url = following
    raise HubError(
        f"the list of commits of '{revision}' of {repo_id} goes on after {MAX_PAGES} pages, none "
        f"of which has commit {head}, its head of a moment ago; look at the repository",
        reason="server",
    )


def _page(client: "HfApi", url: str) -> tuple[list[Commit], str | None]:
    """Return the commits of a page and the address of the next one."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined] # public, but not in __all__
        build_hf_headers,
        hf_raise_for_status,
        http_backoff,
    )

    headers = build_hf_headers(token=client.token, library_name=client.library_name)
    answer = http_backoff("GET", url, headers=headers)
    hf_raise_for_status(answer)
    said: list[dict[str, Any]] = answer.json()
    commits = [
        Commit(
            str(each["id"]),
            str(each["title"]),
            tuple(str(author["user"]) for author in each["authors"]),
        )
        for each in said
    ]
    following: str | None = answer.links.get("next", {}).get("url")
    return commits, following
