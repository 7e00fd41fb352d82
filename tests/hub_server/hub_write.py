"""What changes a repository: creation, settings, uploads and commits."""

import base64
import fnmatch
import json
import math
import re
from pathlib import PurePosixPath
from typing import Any

from hub_git import Pointer
from hub_http import Answer, HubError, Request, answer_json
from hub_refs import next_number, record
from hub_repos import NAME, Repository
from hub_state import Hub
from hub_users import signed_in

ATTRIBUTES = ".gitattributes"
MOVED = "A commit has happened since. Please refresh and try again."


def create(hub: Hub, request: Request) -> Answer:
    """`POST /api/repos/create`. The answer of 409 has the address, which `exist_ok` returns."""
    asked, user = request.json(), signed_in(request)
    kind, owner = f"{asked.get('type') or 'model'}s", asked.get("organization") or user.name
    name = f"{owner}/{asked.get('name')}"
    if not NAME.fullmatch(str(asked.get("name"))):
        raise HubError(400, f"Invalid repo name: {name}")
    if user.role != "write" or owner != user.name:
        place = f'under the namespace "{owner}"'
        raise HubError(403, f"You don't have the rights to create a {kind[:-1]} {place}")
    url = f"{hub.url}/{'' if kind == 'models' else kind + '/'}{name}"
    if not hub.repositories.create(kind, name, asked.get("visibility") == "private"):
        raise HubError(409, f"You already created this {kind[:-1]} repo", url=url, name=name)
    return answer_json({"url": url, "name": name, "id": name})


def delete(hub: Hub, request: Request) -> Answer:
    """`DELETE /api/repos/delete`."""
    asked, user = request.json(), signed_in(request)
    name = f"{asked.get('organization') or user.name}/{asked.get('name')}"
    kind = f"{asked.get('type') or 'model'}s"
    hub.repositories.delete(hub.repositories.open(request, kind, name, "write"))
    return answer_json({})


def move(hub: Hub, request: Request) -> Answer:
    """`POST /api/repos/move`. The real Hub also redirects the old name to the new one."""
    asked = request.json()
    kind, name = f"{asked.get('type') or 'model'}s", str(asked.get("toRepo"))
    repository = hub.repositories.open(request, kind, str(asked.get("fromRepo")), "write")
    if name.split("/")[0] != repository.owner:
        raise HubError(403, "You don't have the rights to move there")
    if not hub.repositories.move(repository, name):
        raise HubError(409, f"There is already a repo named {name}")
    return answer_json({})


def put_settings(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`PUT /api/models/ID/settings`."""
    asked, changes = request.json(), {}
    if "visibility" in asked:
        changes["private"] = asked["visibility"] == "private"
    if "gated" in asked:
        changes["gated"] = asked["gated"]
    repository.update(**changes)
    return answer_json({})


def preupload(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`POST /api/models/ID/preupload/REV`: how each file is to be sent, and what is there now.

    Large files are those that `.gitattributes` names, long ones, and binary ones by their first
    bytes.

    The client leaves out of its commit what has not changed, and makes no commit if nothing is
    left: that is its doing, the Hub itself commits what it is told.
    """
    asked, commit = request.json(), repository.find(revision)
    tree = repository.git.tree(commit)
    patterns = _patterns(repository.git.read(commit, ATTRIBUTES) or b"")
    lines = str(asked.get("gitIgnore") or "").splitlines()
    ignored = [line for line in lines if line and not line.startswith("#")]

    def answer(file: dict[str, Any]) -> dict[str, Any]:
        path, name = file["path"], PurePosixPath(file["path"]).name
        binary = b"\0" in base64.b64decode(file.get("sample", ""))
        large = binary or file["size"] > hub.sizes.large or _matches(path, name, patterns)
        mode = "lfs" if large else "regular"
        told = {"path": path, "uploadMode": mode, "shouldIgnore": _matches(path, name, ignored)}
        entry = tree.get(path)
        if entry is not None and entry.kind == "file":
            told["oid"] = entry.lfs.sha256 if entry.lfs else entry.oid
        return told

    return answer_json({"files": [answer(file) for file in asked["files"]], "commitOid": commit})


def _patterns(attributes: bytes) -> list[str]:
    lines = attributes.decode(errors="replace").splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line]


def _matches(path: str, name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name, p) or fnmatch.fnmatch(path, p) for p in patterns)


def lfs_batch(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`POST /ID.git/info/lfs/objects/batch`: where to send or get large files without Xet.

    An object without actions is there already.
    """
    asked = request.json()
    parts_known = "multipart" in asked.get("transfers", [])
    objects, in_parts = [], False
    for wanted in asked["objects"]:
        sha256, size = wanted["oid"], wanted["size"]
        told: dict[str, Any] = {"oid": sha256, "size": size, "authenticated": True}
        address = f"{hub.url}/_s3/{sha256}"
        if asked["operation"] == "download":
            told["actions"] = {"download": {"href": f"{hub.url}/_cdn/{sha256}"}}
        elif not hub.has_large_file(sha256):
            upload: dict[str, Any] = {"href": address}
            if parts_known and size > hub.sizes.multipart:
                in_parts, count = True, math.ceil(size / hub.sizes.part)
                upload["header"] = {"chunk_size": str(hub.sizes.part)}
                upload["header"] |= {str(n): f"{address}/{n}" for n in range(1, count + 1)}
            verify = f"{hub.url}/api/{repository.kind}/{repository.id}/lfs-verify"
            told["actions"] = {"upload": upload, "verify": {"href": verify}}
        objects.append(told)
    transfer = "multipart" if in_parts else "basic"
    kind = "application/vnd.git-lfs+json"
    return answer_json({"transfer": transfer, "objects": objects}, kind=kind)


def lfs_verify(hub: Hub, request: Request, repository: Repository) -> Answer:
    """`POST /api/models/ID/lfs-verify`: the client asks whether its upload arrived."""
    asked = request.json()
    if hub.files.size(asked["oid"]) != asked["size"]:
        raise HubError(404, "object not uploaded")
    return answer_json({})


def commit(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`POST /api/models/ID/commit/REV`: a header and operations, one JSON object a line.

    All operations become one commit or none does. `parentCommit` must still be the newest commit,
    otherwise 412. With `?create_pr=1` the commit goes to a new pull request that starts there.
    A commit that changes nothing is made like any other: the client is what prevents it.
    """
    user, head = signed_in(request), {}
    operations = []
    for line in request.body.splitlines():
        operation = json.loads(line)
        if operation["key"] == "header":
            head = operation["value"]
        else:
            operations.append((operation["key"], operation["value"]))
    if not head.get("summary"):
        raise HubError(400, '"value.summary" is not allowed to be empty')
    if re.fullmatch("[0-9a-f]{40}", revision):
        raise HubError(400, "Cannot commit to a commit hash; use a branch")
    expected = head.get("parentCommit", "")
    with repository.git.lock:
        parent, new = repository.find(revision), {}
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        number = next_number(repository) if request.flag("create_pr") else None
        if number:
            parent, ref = repository.find(expected or revision), f"refs/pr/{number}"
            new["pullRequestUrl"] = f"{hub.url}/{repository.id}/discussions/{number}"
        elif not parent.startswith(expected):
            raise HubError(412, MOVED)
        changes = _changes(hub, repository, parent, operations)
        message = f"{head['summary']}\n\n{head.get('description', '')}"
        oid = repository.git.commit(ref, parent, changes, message, user.name)
        if number:
            record(repository, number, head["summary"], user.name, pull_request=True)
    url = f"{hub.url}/{repository.id}/commit/{oid}"
    told = {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": "", **new}
    return answer_json(told)


def _changes(
    hub: Hub, repository: Repository, parent: str, operations: list[tuple[str, dict[str, Any]]]
) -> dict[str, bytes | None]:
    changes: dict[str, bytes | None] = {}
    tree = repository.git.tree(parent)
    for key, value in operations:
        path = value["path"].rstrip("/")
        if not path or {"", ".", "..", ".git"} & set(path.split("/")):
            raise HubError(422, f"Invalid path: {value['path']}")
        changes.pop(path, None)  # the last operation on a path is the one that counts
        if key == "file":
            changes[path] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            changes[path] = _pointer(hub, value).text()
        elif key in ("deletedFile", "deletedFolder"):
            kind = "file" if key == "deletedFile" else "directory"
            if path not in tree or tree[path].kind != kind:
                message = f"A {kind} with this name doesn't exist: {path}"
                raise HubError(404, message.replace("directory", "folder"), "EntryNotFound")
            changes[path] = None
        else:
            raise HubError(400, f"Unknown operation: {key}")
    large = [value["path"] for key, value in operations if key == "lfsFile"]
    return {**changes, **_attributes(repository, parent, changes, large)}


def _attributes(
    repository: Repository, parent: str, changes: dict[str, bytes | None], large: list[str]
) -> dict[str, bytes]:
    """Return `.gitattributes` with a line for each large file that it did not name yet."""
    old = changes.get(ATTRIBUTES) or repository.git.read(parent, ATTRIBUTES) or b""
    patterns = _patterns(old)
    new = [path for path in large if not _matches(path, PurePosixPath(path).name, patterns)]
    lines = "".join(f"{path} filter=lfs diff=lfs merge=lfs -text\n" for path in new)
    return {ATTRIBUTES: old + lines.encode()} if new else {}


def _pointer(hub: Hub, value: dict[str, Any]) -> Pointer:
    sha256 = value["oid"]
    size = hub.files.size(sha256)
    if size is None and hub.xet:
        size = hub.xet.size(sha256)
    if size is None:
        message = "Your push was rejected because an LFS pointer pointed to a file that does not"
        raise HubError(400, f"{message} exist. Offending file: - {value['path']}")
    return Pointer(sha256, size)
