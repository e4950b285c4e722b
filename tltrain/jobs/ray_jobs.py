"""Ray's Jobs API over HTTP. Importing ray would cost a second per command, and its client knows no more than this."""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from tltrain.errors import ResourceError
from tltrain.jobs.endpoint import Endpoint
from tltrain.jobs.request import JobRequest

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 15.0  # a head that has just started says after 10 s that it is not ready
UPLOAD_TIMEOUT_S = 300.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)


class NoAnswerError(ResourceError):
    """The cluster does not answer now; it may do so later."""


class RefusedError(ResourceError):
    """The cluster has answered, and will answer the same again."""


@dataclass(frozen=True)
class JobInfo:
    """What a cluster says about one submission. Times are seconds since 1970."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str = ""
    error_type: str | None = None
    exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None


@dataclass(frozen=True)
class Usage:
    """CPU cores and GPUs of a cluster: all of them, and those that nobody has taken."""

    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float


class RayJobs:
    """The jobs of the cluster at an endpoint. Raises NoAnswerError and RefusedError, and never shows the token."""

    def __init__(self, endpoint: Endpoint, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if urlsplit(endpoint.url).hostname in ("127.0.0.1", "localhost", "::1"):
            handlers.append(urllib.request.ProxyHandler({}))
        if endpoint.ca_file is not None:
            context = ssl.create_default_context(cafile=str(endpoint.ca_file))
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def session(self) -> str:
        """Name of the Ray session: a head that starts again has another."""
        return self._json("GET", "/api/version").get("session_name") or ""

    def submit(self, request: JobRequest, *, deadline_s: float = 60.0) -> str:
        """Upload what the request needs and submit it; a request that the cluster has already is left as it is.

        Returns the name of the session that has it.
        What does not answer, or answers with a server's error, is tried again until the deadline: the submission has
        its own id, so it cannot become two jobs.
        """
        deadline = time.monotonic() + deadline_s
        attempt = 0
        while True:
            try:
                return self._submit_once(request)
            except NoAnswerError as error:
                pause_s = _PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]
                if time.monotonic() + pause_s > deadline:
                    raise
                logger.debug("trying again in %g s: %s", pause_s, error)
            time.sleep(pause_s)
            attempt += 1

    def info(self, submission_id: str) -> JobInfo | None:
        """What the cluster says about a submission; None where it knows none with this id."""
        status, text = self._call("GET", f"/api/jobs/{quote(submission_id, safe='')}")
        return None if status == 404 else _info(_parsed(text))

    def list(self) -> dict[str, JobInfo]:
        """All submissions that the cluster knows, by id."""
        found = self._json("GET", "/api/jobs/")
        return {entry["submission_id"]: _info(entry) for entry in found if entry.get("submission_id")}

    def logs(self, submission_id: str) -> str:
        """What the submission has printed so far; empty where the cluster knows none with this id."""
        status, text = self._call("GET", f"/api/jobs/{quote(submission_id, safe='')}/logs")
        return "" if status == 404 else _parsed(text).get("logs") or ""

    def stop(self, submission_id: str) -> bool:
        """Ask a submission to end; False where there is none that runs."""
        status, text = self._call("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")
        return status != 404 and bool(_parsed(text).get("stopped"))

    def delete(self, submission_id: str, *, deadline_s: float = 20.0) -> bool:
        """Let the cluster forget a submission that has ended; False where it knows none.

        Ray answers with an error as long as the job's process is there, which may be seconds after its run has ended.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                status, _ = self._call("DELETE", f"/api/jobs/{quote(submission_id, safe='')}")
                return status != 404
            except NoAnswerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def usage(self) -> Usage | None:
        """What the cluster has and what is free; None where it does not say (yet)."""
        data = self._json("GET", "/api/cluster_status").get("data") or {}
        report = (data.get("clusterStatus") or {}).get("loadMetricsReport") or {}
        usage = report.get("usage")
        if not usage:
            return None
        (used_cpus, cpus), (used_gpus, gpus) = usage.get("CPU", (0, 0)), usage.get("GPU", (0, 0))
        return Usage(cpus, gpus, cpus - used_cpus, gpus - used_gpus)

    def _submit_once(self, request: JobRequest) -> str:
        session = self.session()
        if self.info(request.submission_id) is not None:
            return session
        path = f"/api/packages/gcs/{request.package.name}"
        if self._call("GET", path)[0] == 404:
            self._call("PUT", path, request.package.content, "application/octet-stream", UPLOAD_TIMEOUT_S)
        try:
            self._call("POST", "/api/jobs/", json.dumps(request.body()).encode())
        except NoAnswerError:
            # The answer is lost or bad; whether the job was taken decides.
            if self.info(request.submission_id) is None:
                raise
        if self.session() != session:
            raise NoAnswerError(f"{self._where} was started anew in the middle of the submission", "Try again")
        return session

    def _json(self, method: str, path: str) -> Any:
        status, text = self._call(method, path)
        if status == 404:
            raise RefusedError(f"{self._where} is no Ray dashboard: it has no {path}", "Check the address")
        return _parsed(text)

    def _call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        kind: str = "application/json",
        timeout_s: float | None = None,
    ) -> tuple[int, str]:
        """Status and text of the answer: 200 or 404. Anything else is an error."""
        headers = {"Content-Type": kind} if data is not None else {}
        if self._endpoint.token is not None:
            headers["Authorization"] = f"Bearer {self._endpoint.token}"
        url = self._endpoint.url.rstrip("/") + path
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout_s or self._timeout_s) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error.code, error.read().decode("utf-8", "replace"), method, path)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, ssl.SSLCertVerificationError):
                what = f"the certificate of {self._where} is not trusted: {reason.verify_message}"
                raise RefusedError(what, "Name the certificate's authority as `ca_file` in the cluster file") from error
            what = f"{self._where} does not answer: {reason or type(error).__name__}"
            raise NoAnswerError(what, "Check that the cluster is up and the network is there") from error

    def _refusal(self, status: int, text: str, method: str, path: str) -> tuple[int, str]:
        if status == 404:
            return status, text
        if status in (401, 403):
            said = "asks for a token" if status == 401 else "does not take the token"
            raise RefusedError(f"{self._where} {said}", "Give the right one as `token` in the cluster file")
        said = (text.strip().splitlines() or [""])[-1][:200]
        what = f"{self._where} answers {method} {path} with {status}: {said}"
        if status >= 500 or status in (408, 425, 429):
            raise NoAnswerError(what, "Try again; if it stays so, look at the dashboard's log on the head")
        raise RefusedError(what, "Check that it is a Ray dashboard of version 2.54 or newer")

    @property
    def _where(self) -> str:
        return self._endpoint.url


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, which could lead the token to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise NoAnswerError("the cluster's answer is no JSON", "Check that the address is a Ray dashboard's") from error


def _info(entry: Mapping[str, Any]) -> JobInfo:
    return JobInfo(
        submission_id=entry.get("submission_id") or "",
        status=entry["status"],
        message=entry.get("message") or "",
        error_type=entry.get("error_type"),
        exit_code=entry.get("driver_exit_code"),
        start_time=_seconds(entry.get("start_time")),
        end_time=_seconds(entry.get("end_time")),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000
