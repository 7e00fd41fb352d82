"""From the path of a request to the function that answers it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

import hub_lfs
import hub_read
import hub_refs
import hub_write
from hub_http import Answer, HubError, Request, answer_file
from hub_repos import Need, Repository
from hub_state import Hub

PLAIN: dict[tuple[str, str], Callable[[Hub, Request], Answer]] = {
    ("GET", "/api/whoami-v2"): hub_read.who_am_i,
    ("GET", "/api/models"): hub_read.get_list,
    ("GET", "/api/datasets"): hub_read.get_list,
    ("GET", "/api/spaces"): hub_read.get_list,
    ("POST", "/api/validate-yaml"): hub_read.validate_yaml,
    ("POST", "/api/repos/create"): hub_write.create,
    ("POST", "/api/repos/move"): hub_write.move,
    ("DELETE", "/api/repos/delete"): hub_write.delete,
}
"""Requests that are about no repository, or name it in their body."""


@dataclass(frozen=True)
class Route:
    """Requests about a repository: `/api/KIND/OWNER/NAME` and what follows."""

    method: str
    rest: str
    """Its groups are passed to `serve`, decoded."""
    need: Need
    serve: Callable[..., Answer]


PART = "/([^/]+)"
ROUTES = [
    Route("GET", "", "see", hub_read.get_info),
    Route("GET", f"/revision{PART}", "see", hub_read.get_info),
    Route("GET", f"/tree{PART}", "see", hub_read.get_tree),
    Route("GET", f"/tree{PART}/(.+)", "see", hub_read.get_tree),
    Route("POST", f"/paths-info{PART}", "see", hub_read.post_paths_info),
    Route("GET", f"/commits{PART}", "see", hub_read.get_commits),
    Route("GET", "/refs", "see", hub_refs.get_refs),
    Route("GET", "/discussions", "see", hub_refs.get_discussions),
    Route("GET", f"/discussions{PART}", "see", hub_refs.get_discussion),
    Route("GET", f"/xet-read-token{PART}", "read", hub_read.xet_read_token),
    Route("GET", f"/xet-write-token{PART}", "write", hub_read.xet_write_token),
    Route("PUT", "/settings", "write", hub_write.put_settings),
    Route("POST", f"/preupload{PART}", "write", hub_write.preupload),
    Route("POST", "/lfs-verify", "propose", hub_write.lfs_verify),
    Route("POST", f"/commit{PART}", "write", hub_write.commit),
    Route("POST", "/discussions", "propose", hub_refs.create_discussion),
    Route("POST", f"/branch{PART}", "write", hub_refs.create_branch),
    Route("DELETE", f"/branch{PART}", "write", hub_refs.delete_branch),
    Route("POST", f"/tag{PART}", "write", hub_refs.create_tag),
    Route("DELETE", f"/tag{PART}", "write", hub_refs.delete_tag),
]

KIND, NAME, SHA = "(models|datasets|spaces)", "([^/]+/[^/]+?)", "([0-9a-f]{64})"
API = re.compile(f"/api/{KIND}/([^/]+/[^/]+)(.*)")
RESOLVE = re.compile(f"/(?:{KIND}/)?{NAME}/resolve/([^/]+)/(.+)")
CACHED = re.compile(f"/api/resolve-cache/{KIND}/{NAME}/([^/]+)/(.+)")
BATCH = re.compile(f"/(?:{KIND}/)?{NAME}(?:\\.git)?/info/lfs/objects/batch")
S3 = re.compile(f"/_s3/{SHA}(?:/([0-9]+))?")
CDN = re.compile(f"/_cdn/{SHA}")


def serve(hub: Hub, request: Request) -> Answer:
    """Answer a request. HEAD is GET whose body is not sent.

    Raises:
        HubError: for an answer of 4xx.
    """
    method = "GET" if request.method == "HEAD" else request.method
    if plain := PLAIN.get((method, request.path)):
        return plain(hub, request)
    if match := CACHED.fullmatch(request.path):
        repository = hub.repositories.open(request, match[1], match[2], "read")
        return hub_read.resolve_cached(hub, request, repository, match[3], unquote(match[4]))
    if match := API.fullmatch(request.path):
        return _about_repository(hub, request, method, match)
    if match := RESOLVE.fullmatch(request.path):
        repository = hub.repositories.open(request, match[1] or "models", match[2], "read")
        return hub_read.resolve(hub, request, repository, unquote(match[3]), unquote(match[4]))
    if match := BATCH.fullmatch(request.path):
        upload = request.json().get("operation") == "upload"
        need: Need = "propose" if upload else "read"
        repository = hub.repositories.open(request, match[1] or "models", match[2], need)
        return hub_write.lfs_batch(hub, request, repository)
    return _stores(hub, request, method)


def _about_repository(hub: Hub, request: Request, method: str, match: re.Match[str]) -> Answer:
    for route in ROUTES:
        rest = re.fullmatch(route.rest, match[3])
        if rest and route.method == method:
            parts = [unquote(part) for part in rest.groups()]
            need = route.need
            proposal = request.flag("create_pr") or (parts and parts[0].startswith("refs/pr/"))
            if need == "write" and proposal:
                need = "propose"  # anyone with a token that writes may open a pull request
            repository: Repository = hub.repositories.open(request, match[1], match[2], need)
            return route.serve(hub, request, repository, *parts)
    raise HubError(404, "Sorry, we can't find the page you are looking for.")


def _stores(hub: Hub, request: Request, method: str) -> Answer:
    """Answer for the services beside the Hub: S3, its CDN, and the content store of Xet."""
    if match := CDN.fullmatch(request.path):
        hub_lfs.refuse_token(request)
        data = hub.large_file(match[1]) if method == "GET" else None
        if data is not None:
            return answer_file(request, data, {"ETag": f'"{match[1]}"'})
    if match := S3.fullmatch(request.path):
        if method == "PUT":
            return hub_lfs.put_file(hub.files, request, match[1], match[2])
        if method == "POST":
            return hub_lfs.complete_file(hub.files, request, match[1])
    if hub.xet:
        return hub.xet.serve(request)
    raise HubError(404, "Not found")
