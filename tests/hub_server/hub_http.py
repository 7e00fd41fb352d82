"""HTTP/1.1 on loopback: requests in, answers out, faults in between. Knows nothing of the Hub."""

import json
import os
import re
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hub_faults import Fault, Faults, Log, Logged

JSON = "application/json"
KILLED = 9
"""Exit status of the process after a `kill` fault."""


@dataclass(frozen=True)
class Request:
    """What a client sent. `path` is still percent-encoded: an encoded `/` is part of a name."""

    method: str
    target: str
    headers: Message
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["0"])[0].lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """Return the body, an object; the client also sends some of them as a form.

        Raises:
            HubError: 400, if it is neither.
        """
        if "x-www-form-urlencoded" in self.headers.get("Content-Type", ""):
            return dict(parse_qs(self.body.decode()))
        try:
            value = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise HubError(400, "the body is not an object")
        return value


@dataclass(frozen=True)
class Answer:
    """What the server sends back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = JSON


def answer_json(
    value: object, status: int = 200, headers: dict[str, str] | None = None, kind: str = JSON
) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(status, json.dumps(value).encode(), headers or {}, kind)


def answer_file(request: Request, data: bytes, headers: dict[str, str]) -> Answer:
    """Return a file or, as the client resumes downloads and Xet reads parts, a range of it."""
    kind = "application/octet-stream"
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if not match:
        return Answer(200, data, {"Accept-Ranges": "bytes", **headers}, kind)
    first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
    if first >= len(data):
        size = {"Content-Range": f"bytes */{len(data)}"}
        raise HubError(416, "Range Not Satisfiable", headers=size)
    shown = {"Content-Range": f"bytes {first}-{last}/{len(data)}", **headers}
    return Answer(206, data[first : last + 1], shown, kind)


class HubError(Exception):
    """An answer of 4xx. The client makes its exceptions of the headers, not of the body."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: dict[str, str] | None = None,
        **body: object,
    ) -> None:
        super().__init__(message)
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = answer_json({"error": message, **body}, status, {**told, **(headers or {})})


Serve = Callable[[Request], Answer]


class Server(ThreadingHTTPServer):
    """Serves requests in threads. Connections that break are the tests' daily bread: no noise."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, serve: Serve, control: Serve, faults: Faults, log: Log) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.serve, self.control, self.faults, self.log = serve, control, faults, log

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "LoopbackHub"
    disable_nagle_algorithm = True  # otherwise each answer waits 40 ms for an acknowledgement
    wbufsize = -1  # headers and body in one packet
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Keep standard error for what went wrong."""

    def handle_request(self) -> None:
        request = Request(self.command, self.path, self.headers)
        if request.path.startswith("/_ctl/"):
            request = replace(request, body=self._read_body())
            self._send(self._answer(self.server.control, request), None)
            return
        fault = self.server.faults.take(request.method, request.path)
        if fault and fault.do == "kill" and fault.when == "before":
            self.rfile.read(min(int(fault.arg), int(self.headers.get("Content-Length") or 0)))
            os._exit(KILLED)
        request = replace(request, body=self._read_body())
        seen = [self.headers.get(name, "") for name in ("Authorization", "Host", "Range")]
        answer = self._with_fault(request, fault)
        status = answer.status if answer else 0
        self.server.log.add(Logged(request.method, request.target, status, *seen))
        if answer is None:
            self._hang_up()
        else:
            self._send(answer, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815 # http.server

    def _read_body(self) -> bytes:
        """Return the whole body.

        Raises:
            ConnectionAbortedError: if the client died while sending. What there is of a commit
                may look like one.
        """
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self._read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            parts.append(self._read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        data = self.rfile.read(max(size, 0))
        if len(data) != size:
            raise ConnectionAbortedError
        return data

    def _with_fault(self, request: Request, fault: Fault | None) -> Answer | None:
        """Serve a request, or not; None means that the connection is closed without an answer."""
        if fault is None:
            return self._answer(self.server.serve, request)
        early, refusal = fault.when == "before", None
        if fault.do == "drop":
            return None
        if fault.do == "norange":
            del request.headers["Range"]
        if fault.do == "delay" and early:
            time.sleep(fault.arg)
        if fault.do == "status":
            refusal = HubError(int(fault.arg), "injected", fault.code, fault.headers).answer
        if refusal and early:
            return refusal
        answer = self._answer(self.server.serve, request)
        if fault.do == "kill":
            os._exit(KILLED)
        if fault.do == "delay" and not early:
            time.sleep(fault.arg)
        if fault.do == "json":
            headers = {**answer.headers, **fault.headers}
            return replace(answer, body=fault.body.encode(), headers=headers)
        return None if fault.do == "lost" else refusal or answer

    def _answer(self, serve: Serve, request: Request) -> Answer:
        try:
            return serve(request)
        except HubError as error:
            return error.answer
        except Exception:
            traceback.print_exc()  # of the server itself: its standard error is kept in a file
            return answer_json({"error": "Internal Server Error"}, 500)

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        body, announced, sent = answer.body, len(answer.body), len(answer.body)
        if fault and answer.status in (200, 206):
            place = int(fault.arg)
            if fault.do == "flip" and place < len(body):
                body = body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]
            if fault.do == "short":
                announced = sent = min(place, len(body))
            if fault.do == "truncate":
                sent = place
        self.send_response(answer.status)
        shown = {"Content-Type": answer.content_type, "Content-Length": str(announced)}
        shown["X-Request-Id"] = f"Root=1-{uuid.uuid4().hex}"  # the client puts it into its errors
        for name, value in {**shown, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        self.wfile.flush()
        if sent < announced:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
