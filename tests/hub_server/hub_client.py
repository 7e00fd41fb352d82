"""How tests start the server, talk to its control, and kill it."""

import http.client
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hub_faults import Fault, Kind, Logged, When


class ServerProcess:
    """The process of a server, one after the other on the same folder and port."""

    def __init__(self, root: Path, options: tuple[str, ...]) -> None:
        self._root, self._options, self._port = root, options, 0
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start the server and return its address."""
        self._root.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).parent), "--with-parent"]
        command += ["--root", str(self._root), "--port", str(self._port), *self._options]
        with (self._root / "stderr.txt").open("a") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("READY "):
            raise RuntimeError(f"no server: {(self._root / 'stderr.txt').read_text()}")
        url = line.split()[1]
        self._port = urlsplit(url).port or 0
        return url

    def wait(self, seconds: float = 10) -> int:
        """Wait for the end of the process and return its exit status."""
        assert self._process is not None
        status = self._process.wait(seconds)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return status

    def kill(self) -> None:
        """End the process at once (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self.wait()


@dataclass(frozen=True)
class LoopbackHub:
    """A running server. `HfApi(endpoint=hub.url, token="hf_alice")` talks to it."""

    url: str
    root: Path
    """Repositories lie in `root/models/OWNER/NAME.git`."""
    xet: bool
    """Whether large files are sent with Xet."""
    process: ServerProcess

    @classmethod
    def start(cls, root: Path, *options: str) -> "LoopbackHub":
        """Start a server with options of its command line."""
        process = ServerProcess(root, options)
        return cls(process.start(), root, "--no-xet" not in options, process)

    def _control(self, method: str, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = connection.getresponse()
            value = json.loads(answer.read())
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {value}")
        return value

    def fault(
        self,
        do: Kind,
        path: str,
        *,
        method: str = ".*",
        times: int = 1,
        after: int = 0,
        arg: float = 0,
        when: When = "before",
        code: str = "",
        headers: dict[str, str] | None = None,
        body: str = "",
    ) -> None:
        """Order a fault for coming requests; see `hub_faults`.

        Args:
            do: what happens.
            path: regular expression that is searched in the path, which has no query.
            method: regular expression that must match the method.
            times: so many requests are hit.
            after: so many requests pass before.
            arg: status, seconds or bytes.
            when: of `delay` and `kill`: before or after the request takes effect.
            code: `X-Error-Code` of `status`.
            headers: more headers of `status` and `json`.
            body: what `json` sends.
        """
        fault = Fault(do, path, method, times, after, arg, when, code, headers or {}, body)
        self._control("POST", "/_ctl/fault", asdict(fault))

    def clear(self) -> None:
        """Cancel all faults and forget the log."""
        self._control("DELETE", "/_ctl/fault")
        self._control("DELETE", "/_ctl/log")

    def log(self) -> list[Logged]:
        """Return all requests since the start or `clear`."""
        return [Logged(**entry) for entry in self._control("GET", "/_ctl/log")]

    def errors(self) -> str:
        """Return what the server wrote to standard error: nothing, unless it has a mistake."""
        return (self.root / "stderr.txt").read_text()

    def kill(self) -> None:
        """End the server at once."""
        self.process.kill()

    def wait(self) -> int:
        """Wait for the end of a server that a fault killed; return its exit status."""
        return self.process.wait()

    def restart(self) -> None:
        """Start a killed server again, with the same address and everything it had."""
        url = self.process.start()
        if url != self.url:
            raise RuntimeError(f"restarted as {url}")
