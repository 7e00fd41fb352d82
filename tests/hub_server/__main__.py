"""A Hugging Face Hub on loopback, for tests of what talks to the real one.

    python tests/hub_server --root DIR [--port 0] [--no-xet]

prints `READY http://127.0.0.1:PORT` when it can be asked. It needs the `git` program; `hf_xet` if
files that were sent with Xet are read without it; and PyYAML, which the client requires, for model
cards. All state is in DIR: started again on it, with the same port, it goes on where it was,
whenever it was killed.

Repositories are bare git repositories (`DIR/models/OWNER/NAME.git`), so commits, trees and file
ids are git's own and `git log` shows what the API tells. Large files are kept by SHA-256
(`DIR/lfs`), or as `hf_xet` sent them (`DIR/xet`).

The users are those of `hub_users.TOKENS`: hf_alice, hf_alice-read (may not write) and hf_bob.

Tests control it, without a token: `POST /_ctl/fault` orders a fault (see `hub_faults`),
`DELETE /_ctl/fault` cancels all of them; `GET /_ctl/log` returns all requests, `DELETE /_ctl/log`
forgets them. The log and the faults do not survive a restart.

What it does not do: organizations, access requests, merging of pull requests, comments, super-
squash, the list and deletion of LFS files, copies between repositories, redirects from old names,
git over HTTP, rate limits, the real Hub's limits of sizes and names, its checks of content, and
Xet's deduplication across repositories. Tokens for Xet are the same for all repositories.
"""

import argparse
import os
import sys
import threading
from functools import partial
from pathlib import Path

from hub_api import serve
from hub_faults import Fault, Faults, Log
from hub_http import Answer, HubError, Request, Server, answer_json
from hub_state import Hub, Sizes


def control(faults: Faults, log: Log, request: Request) -> Answer:
    """Answer a request of a test."""
    asked = (request.method, request.path)
    if asked == ("POST", "/_ctl/fault"):
        faults.add(Fault(**request.json()))
    elif asked == ("DELETE", "/_ctl/fault"):
        faults.clear()
    elif asked == ("GET", "/_ctl/log"):
        return answer_json(log.as_json())
    elif asked == ("DELETE", "/_ctl/log"):
        log.clear()
    else:
        raise HubError(404, "no such control")
    return answer_json({})


def die_with_parent() -> None:
    """End the process when its standard input is closed: no server outlives its tests."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="hub_server", description="a Hub on loopback")
    parser.add_argument("--root", type=Path, required=True, help="folder with all state")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--no-xet", action="store_true", help="all large files are LFS")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin is closed")
    for name in ("large", "multipart", "part", "page"):
        default = getattr(Sizes, name)
        parser.add_argument(f"--{name}", type=int, default=default, help="see hub_state.Sizes")
    given = parser.parse_args()
    os.environ["HF_XET_CACHE"] = str(given.root.resolve() / "xet-cache")  # not the user's
    faults, log = Faults(), Log()
    sizes = Sizes(given.large, given.multipart, given.part, given.page)
    hubs: list[Hub] = []

    def answer(request: Request) -> Answer:
        return serve(hubs[0], request)

    server = Server(given.port, answer, partial(control, faults, log), faults, log)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    hubs.append(Hub.open(given.root.resolve(), url, sizes, not given.no_xet))
    if given.with_parent:
        threading.Thread(target=die_with_parent, daemon=True).start()
    sys.stdout.write(f"READY {url}\n")
    sys.stdout.flush()
    server.serve_forever()


main()
