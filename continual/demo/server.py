"""The server of the demonstration: ``everlearn serve`` as a user would start it, and what is asked of it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from everlearn.errors import Unavailable
from everlearn.processes.program import describe_death, environment, log_tail, python
from everlearn.progress import Progress
from everlearn.settings import Settings

START_S = 900
STOP_S = 60
POLL_S = 1.0
OVER = ("succeeded", "failed", "cancelled")


class Server:
    """A running server of one model, asked over HTTP as any client asks it."""

    def __init__(self, url: str, model: str, log: Path) -> None:
        self.url = url
        self.model = model
        self.log = log
        self.http = httpx.Client(base_url=url, timeout=300)

    def continue_text(self, prompt: str, tokens: int = 48) -> tuple[str, str]:
        """How the model goes on from ``prompt``, greedily, and which version it was."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        response = self._good(self.http.post("/v1/completions", json=body))
        return response.json()["choices"][0]["text"], response.headers["x-everlearn-version"]

    def upload(self, path: Path) -> str:
        """The id of the file."""
        with path.open("rb") as file:
            response = self.http.post(
                "/v1/files", files={"file": (path.name, file)}, data={"purpose": "fine-tune"}
            )
        return self._good(response).json()["id"]

    def create_job(self, file: str, recipe: Mapping[str, Any]) -> str:
        """The id of the job."""
        body = {"model": self.model, "training_file": file, "everlearn": recipe}
        return self._good(self.http.post("/v1/fine_tuning/jobs", json=body)).json()["id"]

    def wait(self, job: str, progress: Progress) -> dict[str, Any]:
        """The job once it is over, its events told meanwhile. Raises Unavailable where it did not succeed."""
        while True:
            found = self._good(self.http.get(f"/v1/fine_tuning/jobs/{job}")).json()
            events = self._good(self.http.get(f"/v1/fine_tuning/jobs/{job}/events", params={"limit": 1}))
            told = events.json()["data"]
            progress(told[0]["message"] if told else found["status"], None)
            if found["status"] in OVER:
                break
            time.sleep(POLL_S)
        if found["status"] != "succeeded":
            raise Unavailable(f"{job} {found['status']}: {(found.get('error') or {}).get('message')}")
        return found

    def wait_for_version(self, ref: str, within_s: float = 120) -> float:
        """Seconds until new requests are answered by ``ref``. Raises Unavailable."""
        started = time.monotonic()
        while (passed := time.monotonic() - started) < within_s:
            if self.continue_text("Once", tokens=1)[1] == ref:
                return passed
            time.sleep(0.2)
        raise Unavailable(f"{ref} did not serve within {within_s:.0f} s; see {self.log}")

    def _good(self, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            raise Unavailable(
                f"{response.request.method} {response.request.url.path} gave {response.status_code}: "
                f"{response.text[:500]}"
            )
        return response


@contextmanager
def serving(settings: Settings, model: str, progress: Progress) -> Generator[Server]:
    """``everlearn serve MODEL`` on a free port of this machine, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = settings.home / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            python("everlearn", "serve", model, "--port", str(port)),
            env=environment(**settings.environment()),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", model, log)
    try:
        _wait_ready(server, process, progress)
        yield server
    finally:
        server.http.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(server: Server, process: subprocess.Popen[bytes], progress: Progress) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        progress("starting the server", None)
        if (code := process.poll()) is not None:
            with server.log.open("rb") as log:
                raise Unavailable(describe_death("the server", code, log))
        try:
            if server.http.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    with server.log.open("rb") as log:
        raise Unavailable(f"the server was not ready in {START_S} s; the end of its log:\n{log_tail(log)}")
