"""What the API tells of a repository: settings, files and history, and the files themselves."""

import hashlib
import re
import time
from typing import Any
from urllib.parse import quote, urlencode

from hub_git import Entry
from hub_http import Answer, HubError, Request, answer_file, answer_json
from hub_repos import Repository
from hub_state import Hub
from hub_users import signed_in
from hub_xet import LIFETIME, READ_TOKEN, WRITE_TOKEN

MISSING = "Entry not found"
FRONT_MATTER = re.compile(rb"---\r?\n(.*?)\r?\n---", re.DOTALL)


def card_data(readme: bytes) -> dict[str, Any]:
    """Return the metadata of a model card, nothing if it has none that can be read."""
    import yaml  # the client requires PyYAML, so it is there

    match = FRONT_MATTER.match(readme)
    try:
        data = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def describe(repository: Repository, commit: str, sizes: bool) -> dict[str, Any]:
    """Return what `GET /api/models/ID` says."""
    settings, tree = repository.settings(), repository.git.tree(commit)
    readme = repository.git.read(commit, "README.md")
    card = card_data(readme) if readme else {}
    files = [entry for entry in tree.values() if entry.kind == "file"]
    siblings: list[dict[str, Any]] = [{"rfilename": entry.path} for entry in files]
    for sibling, entry in zip(siblings, files, strict=True):
        if sizes:
            sibling |= {"blobId": entry.oid, "size": entry.lfs.size if entry.lfs else entry.size}
        if sizes and entry.lfs:
            lfs = {"sha256": entry.lfs.sha256, "size": entry.lfs.size, "pointerSize": entry.size}
            sibling["lfs"] = lfs
    return {
        "_id": hashlib.md5(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.owner,
        "sha": commit,
        "lastModified": repository.git.history(commit, 0, 1)[0].date,
        "createdAt": settings["createdAt"],
        "private": settings["private"],
        "gated": settings["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card,
        "siblings": siblings,
    }


def get_info(hub: Hub, request: Request, repository: Repository, revision: str = "main") -> Answer:
    """`GET /api/models/ID[/revision/REV]`; with `expand`, just the fields that are asked for."""
    commit = repository.find(revision)
    found = describe(repository, commit, "blobs" in request.query)
    wanted = request.query.get("expand", []) + request.query.get("expand[]", [])
    if wanted:
        found = {name: found.get(name) for name in ("_id", "id", *wanted)}
    return answer_json(found)


def get_list(hub: Hub, request: Request) -> Answer:
    """`GET /api/models`: public repositories by owner, part of the name, and tags."""
    kind = request.path.rsplit("/", 1)[1]
    owner, text = request.query.get("author", ["*"])[0], request.query.get("search", [""])[0]
    tags = {tag for value in request.query.get("filter", []) for tag in value.split(",")}
    found = [
        describe(repository, repository.find("main"), sizes=False)
        for repository in hub.repositories.all(kind, owner)
        if text in repository.id and not repository.settings()["private"]
    ]
    return answer_json([each for each in found if tags <= {*each["tags"], each["library_name"]}])


def _file_info(
    hub: Hub, repository: Repository, commit: str, entry: Entry, last: bool
) -> dict[str, Any]:
    """Return what the tree says of a file or folder; `last`: with the last commit."""
    size = entry.lfs.size if entry.lfs else entry.size
    info: dict[str, Any] = {"type": entry.kind, "oid": entry.oid, "size": size, "path": entry.path}
    if entry.lfs:
        lfs = {"oid": entry.lfs.sha256, "size": entry.lfs.size, "pointerSize": entry.size}
        info["lfs"] = lfs
        name = hub.xet.hash_of(entry.lfs.sha256) if hub.xet else None
        info |= {"xetHash": name} if name else {}
    if last:
        change = repository.git.history(commit, 0, 1, entry.path)[0]
        info["lastCommit"] = {"id": change.oid, "title": change.title, "date": change.date}
    return info


def _page(hub: Hub, request: Request, key: str, start: int) -> dict[str, str]:
    """Return the header that tells the client where the next page is."""
    asked = {name: values[0] for name, values in request.query.items()}
    address = f"{hub.url}{request.path}?{urlencode({**asked, key: start})}"
    return {"Link": f'<{address}>; rel="next"'}


def get_tree(
    hub: Hub, request: Request, repository: Repository, revision: str, folder: str = ""
) -> Answer:
    """`GET /api/models/ID/tree/REV[/FOLDER]`, in pages."""
    commit, prefix = repository.find(revision), f"{folder}/" if folder else ""
    tree = repository.git.tree(commit)
    found = [entry for path, entry in tree.items() if path.startswith(prefix)]
    if folder and not found:
        raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
    if not request.flag("recursive"):
        found = [entry for entry in found if "/" not in entry.path[len(prefix) :]]
    last = request.flag("expand")
    size = hub.sizes.page * (1 if last else 20)
    start = int(request.query.get("cursor", ["0"])[0])
    more = len(found) > start + size
    headers = _page(hub, request, "cursor", start + size) if more else {}
    shown = [_file_info(hub, repository, commit, e, last) for e in found[start : start + size]]
    return answer_json(shown, headers=headers)


def post_paths_info(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`POST /api/models/ID/paths-info/REV`: as the tree; paths that do not exist are left out."""
    asked, commit = request.json(), repository.find(revision)
    paths = asked.get("paths", [])
    wanted = [path.rstrip("/") for path in ([paths] if isinstance(paths, str) else paths)]
    expand = asked.get("expand", False)
    last = str(expand[0] if isinstance(expand, list) else expand).lower() == "true"
    tree = repository.git.tree(commit)
    found = [_file_info(hub, repository, commit, tree[p], last) for p in wanted if p in tree]
    return answer_json(found)


def get_commits(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`GET /api/models/ID/commits/REV`: the newest first, in pages."""
    commit, page = repository.find(revision), int(request.query.get("p", ["0"])[0])
    size = min(int(request.query.get("limit", [str(hub.sizes.page)])[0]), 100)
    found = repository.git.history(commit, page * size, size + 1)
    headers = _page(hub, request, "p", page + 1) if len(found) > size else {}
    shown = [
        {
            "id": each.oid,
            "title": each.title,
            "message": each.message,
            "authors": [{"user": each.author}],
            "date": each.date,
        }
        for each in found[:size]
    ]
    return answer_json(shown, headers=headers)


def resolve(hub: Hub, request: Request, repository: Repository, revision: str, path: str) -> Answer:
    """`GET` and `HEAD /ID/resolve/REV/PATH`: where downloads begin.

    The client keeps a file under its ETag. Small files are redirected within the Hub: it follows,
    with the token. Large ones are redirected to another host (here: another name of this one),
    which must not see the token; the redirect itself has their SHA-256 and size. With Xet it also
    has the hash and the address of a token with which `hf_xet` gets the file elsewhere. A 404
    tells the commit, too, so that the client can remember that this one has no such file.
    """
    commit = repository.find(revision)
    told = {"X-Repo-Commit": commit}
    entry = repository.git.tree(commit).get(path)
    if entry is None or entry.kind != "file":
        raise HubError(404, MISSING, "EntryNotFound", told)
    told["ETag"] = f'"{entry.oid}"'
    if entry.lfs is None:
        place = f"{repository.kind}/{repository.id}/{commit}/{quote(path)}"
        return Answer(307, headers={**told, "Location": f"/api/resolve-cache/{place}"})
    sha256 = entry.lfs.sha256
    told |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(entry.lfs.size)}
    told["Location"] = f"{hub.url.replace('127.0.0.1', 'localhost')}/_cdn/{sha256}"
    told["Accept-Ranges"] = "bytes"
    name = hub.xet.hash_of(sha256) if hub.xet else None
    if name:
        address = f"{hub.url}/api/{repository.kind}/{repository.id}/xet-read-token/{commit}"
        told |= {"X-Xet-Hash": name, "X-Xet-Refresh-Route": address}
        told["Link"] = f'<{address}>; rel="xet-auth"'
    return Answer(302, headers=told)


def resolve_cached(
    hub: Hub, request: Request, repository: Repository, commit: str, path: str
) -> Answer:
    """`GET` and `HEAD /api/resolve-cache/models/ID/COMMIT/PATH`: small files of one commit."""
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise HubError(400, "Invalid commit")
    data = repository.git.read(repository.find(commit), path)
    if data is None:
        raise HubError(404, MISSING, "EntryNotFound", {"X-Repo-Commit": commit})
    oid = repository.git.tree(commit)[path].oid
    return answer_file(request, data, {"X-Repo-Commit": commit, "ETag": f'"{oid}"'})


def xet_read_token(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`GET /api/models/ID/xet-read-token/REV`: what `hf_xet` needs to download."""
    return _xet_token(hub, READ_TOKEN)


def xet_write_token(hub: Hub, request: Request, repository: Repository, revision: str) -> Answer:
    """`GET /api/models/ID/xet-write-token/REV`: what `hf_xet` needs to upload."""
    return _xet_token(hub, WRITE_TOKEN)


def _xet_token(hub: Hub, token: str) -> Answer:
    """Return a token for the content store only; the client reads the headers, `hf_xet` the body.

    The real one says for which repository it is.
    """
    if hub.xet is None:
        raise HubError(404, "Not found")
    end = int(time.time()) + LIFETIME
    headers = {"X-Xet-Cas-Url": hub.url, "X-Xet-Access-Token": token}
    headers["X-Xet-Token-Expiration"] = str(end)
    return answer_json({"casUrl": hub.url, "accessToken": token, "exp": end}, 200, headers)


def validate_yaml(hub: Hub, request: Request) -> Answer:
    """`POST /api/validate-yaml`: asked before a README.md is uploaded.

    The client shows the warnings as UserWarning and raises ValueError with the errors.
    """
    import yaml

    match = FRONT_MATTER.match(str(request.json().get("content", "")).encode())
    errors, warnings = [], []
    try:
        if match and not isinstance(yaml.safe_load(match[1]), dict):
            errors.append({"message": "YAML metadata must be a mapping"})
    except yaml.YAMLError as error:
        errors.append({"message": f"YAML metadata is invalid: {error}"})
    if not match:
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    return answer_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def who_am_i(hub: Hub, request: Request) -> Answer:
    """`GET /api/whoami-v2`: the client completes the names of repositories with the user's."""
    user = signed_in(request)
    token = {"displayName": "loopback", "role": user.role}
    return answer_json(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "orgs": [],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )
