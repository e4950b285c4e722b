"""A fake of Ray's Jobs server that can delay, answer 500, drop replies, forget jobs, fall silent and start again."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tltrain.jobs.endpoint import Endpoint

TOKEN = "fake-token-0123456789abcdef"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request: an error instead of work, or work whose answer is lost or late."""

    status: int | None = None
    drops_answer: bool = False
    delay_s: float = 0.0
    """Seconds before the work is done."""
    late_s: float = 0.0
    """Seconds between the work and its answer."""


@dataclass
class FakeRay:
    """A cluster as its Jobs API shows it. `fault` decides for each request (method, path) whether it goes wrong."""

    fault: Callable[[str, str], Fault | None] = lambda method, path: None
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)
    """How often each submission id was taken as a new job."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    session: str = "session_1"
    usage: dict[str, tuple[float, float]] = field(default_factory=lambda: {"CPU": (0.0, 4.0)})
    """Resource -> (used, all of it)."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"http://127.0.0.1:{self.port}", TOKEN)

    def listen(self) -> None:
        """Begin to answer, on the same port as before."""
        handler = type("Handler", (_Handler,), {"ray": self})
        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def fall_silent(self) -> None:
        """Answer nobody any more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def start_anew(self) -> None:
        """What a head without lasting storage does: another session, and every job is forgotten."""
        self.session += "_again"
        self.jobs.clear()

    def set(self, submission_id: str, status: str, **fields: Any) -> None:
        """Let a job be in a state."""
        with self.lock:
            self.jobs[submission_id] |= {"status": status, **fields}

    def take(self, body: dict[str, Any]) -> tuple[int, str]:
        """Accept a submission once, as Ray does."""
        own_id = body["submission_id"]
        with self.lock:
            if own_id in self.jobs:
                return 500, f"Traceback ...\nRuntimeError: Job with submission_id {own_id} already exists."
            self.accepted[own_id] += 1
            self.bodies[own_id] = body
            now = int(time.time() * 1000)
            self.jobs[own_id] = {
                **{"submission_id": own_id, "type": "SUBMISSION", "status": "PENDING", "start_time": now},
                **{
                    "entrypoint": body["entrypoint"],
                    "metadata": body["metadata"],
                    "message": "Job has not started yet.",
                },
                **{"runtime_env": body["runtime_env"], "error_type": None, "driver_exit_code": None, "end_time": None},
            }
        return 200, json.dumps({"job_id": own_id, "submission_id": own_id})


class _Handler(BaseHTTPRequestHandler):
    ray: FakeRay
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep stderr quiet."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.ray.lock:
            self.ray.requests.append((method, self.path))
            self.ray.headers.append(dict(self.headers))
        given = self.headers.get("Authorization")
        if given != f"Bearer {TOKEN}":
            return self._send(401 if given is None else 403, "no")
        fault = self.ray.fault(method, self.path) or Fault()
        time.sleep(fault.delay_s)
        if fault.status is not None:
            return self._send(fault.status, "Traceback ...\nNo available agent to submit job, please try again later.")
        status, text = self._work(method, self.path.removeprefix("/api/").split("?")[0].split("/"), body)
        time.sleep(fault.late_s)
        if fault.drops_answer:
            self.close_connection = True
            return None
        return self._send(status, text)

    def _send(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _work(self, method: str, parts: list[str], body: bytes) -> tuple[int, str]:
        ray = self.ray
        match (method, parts):
            case "GET", ["version"]:
                return 200, json.dumps({"version": "4", "ray_version": "2.60.0", "session_name": ray.session})
            case "GET", ["cluster_status"]:
                report = {"loadMetricsReport": {"usage": ray.usage}}
                return 200, json.dumps({"result": True, "data": {"clusterStatus": report}})
            case "GET", ["packages", "gcs", name]:
                return (200, "") if name in ray.packages else (404, "no such package")
            case "PUT", ["packages", "gcs", name]:
                ray.packages[name] = body
                return 200, ""
            case "POST", ["jobs", ""]:
                return ray.take(json.loads(body))
            case "GET", ["jobs", ""]:
                return 200, json.dumps(list(ray.jobs.values()))
            case _, ["jobs", own_id, *rest] if own_id in ray.jobs:
                return self._work_on_job(method, own_id, rest)
        return 404, "there is no such thing"

    def _work_on_job(self, method: str, own_id: str, rest: list[str]) -> tuple[int, str]:
        ray = self.ray
        if method == "GET" and rest == ["logs"]:
            return 200, json.dumps({"logs": ray.logs.get(own_id, "")})
        if method == "POST" and rest == ["stop"]:
            runs = ray.jobs[own_id]["status"] in ("PENDING", "RUNNING")
            if runs:
                ray.set(own_id, "STOPPED")
            return 200, json.dumps({"stopped": runs})
        if method == "DELETE":
            del ray.jobs[own_id]
            return 200, json.dumps({"deleted": True})
        return 200, json.dumps(ray.jobs[own_id])


@contextmanager
def running_fake() -> Iterator[FakeRay]:
    """A fake cluster that answers for the length of a `with` block."""
    fake = FakeRay()
    fake.listen()
    try:
        yield fake
    finally:
        fake.fall_silent()


def write_cluster_file(fake: FakeRay, folder: Path, name: str = "fake") -> Path:
    """Write a cluster file, and its token's, that lead to a fake cluster."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f"{name}.token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    path = folder / f"{name}.yaml"
    path.write_text(f"kind: address\nurl: {fake.endpoint.url}\ntoken: file:{token}\n")
    return path
