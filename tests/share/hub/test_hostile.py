"""Hubs that attack who asks them: paths in headers, other hosts, endless files, evil words."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from salve_plugin.errors import HubError, SalveError
from salve_plugin.share.artifact import EditArtifact

COMMIT = "c0ffee" * 6 + "c0ff"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers every request in one way and remembers the requests."""

    def __init__(self, answer: Answer) -> None:
        requests: list[tuple[str, str, str | None]] = []

        class Handler(BaseHTTPRequestHandler):
            def handle_request(self) -> None:
                requests.append((self.command, self.path, self.headers["authorization"]))
                answer(self)

            do_GET = do_HEAD = handle_request  # noqa: N815 # the base class names them so

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = requests
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    """Run a server for as long as the block."""
    with Server(answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def replies(status: int, body: bytes = b"{}", **headers: str) -> Answer:
    """Return an answer with these headers, '_' for '-'."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


def everything_under(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("etag", "commit"),
    [
        ("../../../../outside", COMMIT), ("OUTSIDE", COMMIT), ("..", COMMIT), ("a/b", COMMIT),
        ("", COMMIT), ("a" * 40, "../../../../outside"), ("a" * 40, "main"),
    ],
)  # fmt: skip
def test_a_hub_cannot_name_paths_in_its_headers(
    etag: str, commit: str, hf_home: Path, tmp_path: Path
) -> None:
    etag = etag.replace("OUTSIDE", str(tmp_path / "outside"))
    cache = tmp_path / "a" / "b" / "cache"
    cache.mkdir(parents=True)
    before = everything_under(tmp_path)
    with serving(replies(200, ETag=f'"{etag}"', X_Repo_Commit=commit)) as hub:
        for revision in (COMMIT, None):
            with pytest.raises(SalveError):
                EditArtifact.from_pretrained(
                    "a/b", revision=revision, cache_dir=cache, endpoint=hub.url
                )
        assert not [path for method, path, _ in hub.requests if method == "GET"]
    new = everything_under(tmp_path) - before
    assert all(path.is_relative_to(cache) for path in new)


def test_a_hub_cannot_serve_another_commit_than_the_pinned_one(
    hf_home: Path, tmp_path: Path
) -> None:
    with serving(replies(200, ETag="a" * 40, X_Repo_Commit="f" * 40)) as hub:
        with pytest.raises(SalveError, match="is for commit 'ffff"):
            EditArtifact.from_pretrained(
                "a/b", revision=COMMIT, cache_dir=tmp_path, endpoint=hub.url
            )
        assert {method for method, *_ in hub.requests} == {"HEAD"}


def test_the_users_own_token_is_not_for_other_hubs(hf_home: Path, tmp_path: Path) -> None:
    hf_home.mkdir(exist_ok=True)
    (hf_home / "token").write_text("hf_secret")
    with serving(replies(404)) as hub:
        for token in (None, False):
            with pytest.raises(SalveError):
                EditArtifact.from_pretrained(
                    "a/b", endpoint=hub.url, token=token, cache_dir=tmp_path
                )
        assert hub.requests
        assert not [given for *_, given in hub.requests if given]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_token_does_not_follow_a_redirect_to_another_host(
    status: int, hf_home: Path, tmp_path: Path
) -> None:
    with serving(replies(404)) as other:

        def away(request: BaseHTTPRequestHandler) -> None:
            place = other.url + request.path
            replies(
                status, Location=place, ETag="a" * 40, X_Repo_Commit=COMMIT, X_Linked_Size="100"
            )(request)

        with serving(away) as hub:
            with pytest.raises(SalveError):
                EditArtifact.from_pretrained(
                    "a/b", endpoint=hub.url, token="hf_secret", cache_dir=tmp_path
                )
            assert "Bearer hf_secret" in {given for *_, given in hub.requests}
        assert not [given for *_, given in other.requests if given]


@pytest.mark.parametrize("words", ["\x1b[2J\x1b]0;owned\x07", "a\rb", "\x9b31m"])
def test_what_a_hub_says_cannot_command_the_terminal(
    words: str, hf_home: Path, tmp_path: Path
) -> None:
    with (
        serving(replies(403, X_Error_Message=words, X_Error_Code="Other")) as hub,
        pytest.raises(HubError) as caught,
    ):
        EditArtifact.from_pretrained("a/b", endpoint=hub.url, cache_dir=tmp_path)
    assert str(caught.value).isprintable()
