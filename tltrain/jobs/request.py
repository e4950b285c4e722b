"""What is sent to a cluster for one attempt at a job: built from the spec alone, before anything is sent."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tltrain.environment import JOB_VARIABLE, SECRETS_VARIABLE
from tltrain.errors import Problem, SpecError
from tltrain.jobs.upload import SPEC_NAME, Entry, Package, new_place, pack, package_entries, user_entries
from tltrain.spec.load import dump_yaml
from tltrain.spec.names import TORCHVISION_PREFIX, source_parts
from tltrain.spec.paths import is_address
from tltrain.spec.schema import Spec

ID_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}-[0-9a-f]{6}"
PROGRAM = ("python", "-m", "tltrain.run", SPEC_NAME)

# What Ray and its workers read at the start of each process. Progress is followed by polling: send it unbuffered.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
_SECRET_WORDS = re.compile(r"secret|password|token|signature|credential|access_key|^sig$", re.IGNORECASE)


@dataclass(frozen=True)
class JobRequest:
    """One attempt as it is sent. Its id is ours, so that a repeated request is the same job."""

    submission_id: str
    argv: tuple[str, ...]
    metadata: Mapping[str, str]
    env_vars: Mapping[str, str]
    package: Package = field(repr=False)

    @property
    def entrypoint(self) -> str:
        """The command line as one string, which Ray gives to a shell."""
        return shlex.join(self.argv)

    @property
    def package_uri(self) -> str:
        """Where the cluster keeps the upload."""
        return f"gcs://{self.package.name}"

    def body(self) -> dict[str, Any]:
        """What is posted to `/api/jobs/`."""
        return {
            "submission_id": self.submission_id,
            "entrypoint": self.entrypoint,
            "metadata": dict(self.metadata),
            "runtime_env": {"working_dir": self.package_uri, "env_vars": dict(self.env_vars)},
        }


def new_job_id(run: str, random_hex: Callable[[int], str] = secrets.token_hex) -> str:
    """An id for a new job: the run's name and six random hexadecimal digits."""
    return f"{run}-{random_hex(3)}"


def submission_id(job_id: str, attempt: int) -> str:
    """Ray's id of one attempt (1, 2, ...) at a job."""
    return f"{job_id}-{attempt}"


def build_package(spec: Spec, uploads: Sequence[Path] = (), *, with_tltrain: bool = True) -> Package:
    """Pack the resolved spec, the tltrain package and the files named with --upload.

    Paths of the spec that are uploaded become relative to the upload. Raises SpecError with all problems, also where
    the spec holds a password, or a name that leads out of the upload.
    """
    entries, left_out = user_entries(uploads)
    check_no_secrets(spec)
    text = dump_yaml(relocated(spec, uploads))
    package = package_entries() if with_tltrain else []
    return pack([Entry(SPEC_NAME, text.encode()), *package, *entries], left_out)


def build_request(
    job_id: str,
    attempt: int,
    package: Package,
    *,
    cluster_secrets: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    max_duration_s: float | None = None,
) -> JobRequest:
    """The request of one attempt. `sets` are `KEY=VALUE` for the far side; `cluster_secrets` are references alone."""
    assert re.fullmatch(ID_PATTERN, job_id), job_id
    own_id = submission_id(job_id, attempt)
    argv = list(PROGRAM)
    for assignment in sets:
        argv += ["--set", assignment]
    if max_duration_s is not None:
        argv += ["--max-duration", f"{max_duration_s:.0f}"]
    env_vars = {**_ENVIRONMENT, JOB_VARIABLE: own_id}
    if cluster_secrets:
        env_vars[SECRETS_VARIABLE] = json.dumps(dict(cluster_secrets), sort_keys=True)
    metadata = {"tltrain_job": job_id, "tltrain_attempt": str(attempt)}
    return JobRequest(own_id, tuple(argv), metadata, env_vars, package)


def relocated(spec: Spec, uploads: Sequence[Path]) -> Spec:
    """A copy of `spec` in which paths that are uploaded lead into the upload; the far side makes them absolute."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, str):
            return value
        prefix, path, split = source_parts(value)
        place = new_place(path, uploads) if path.startswith("/") else None
        return f"{prefix}{place}{split}" if place else value

    data = {key: moved(getattr(spec.data, key)) for key in ("train", "val", "test")}
    update: dict[str, Any] = {
        "data": spec.data.model_copy(update=data),
        "model": spec.model.model_copy(update={"weights": moved(spec.model.weights)}),
    }
    if spec.sweep is not None:
        space = dict(spec.sweep.space)
        for key in ("data.train", "model.weights"):
            domain = space.get(key)
            if domain is not None and domain.kind in ("grid", "choice"):
                space[key] = domain.model_copy(update={domain.kind: moved(domain.values)})
        update["sweep"] = spec.sweep.model_copy(update={"space": space})
    return spec.model_copy(update=update)


def local_paths(spec: Spec, uploads: Sequence[Path]) -> list[tuple[str, str]]:
    """(key, path) of the paths that the cluster must reach under the same name, for they are not uploaded."""
    moved = relocated(spec, uploads)
    values = {"storage": moved.storage, "model.weights": moved.model.weights}
    sources = {f"data.{key}": getattr(moved.data, key) for key in ("train", "val", "test")}
    values |= {key: source_parts(source)[1] for key, source in sources.items() if isinstance(source, str)}
    if any(str(source).startswith(TORCHVISION_PREFIX) for source in sources.values()):
        values["data.root"] = moved.data.root
    return [(key, value) for key, value in values.items() if isinstance(value, str) and value.startswith("/")]


def check_no_secrets(spec: Spec) -> None:
    """Raise SpecError where an address holds a password or a key: specs are kept and shown in plain text."""
    problems = []
    values = {"storage": spec.storage, "model.weights": spec.model.weights}
    sources = {f"data.{key}": getattr(spec.data, key) for key in ("train", "val", "test")}
    values |= {key: source_parts(source)[1] for key, source in sources.items() if isinstance(source, str)}
    for key, value in values.items():
        if is_address(value) and _holds_secret(value):
            action = "Take it out of the address and name it under `secrets:` of the cluster file"
            problems.append(Problem("the address holds a password or a key", action, key=key))
    if problems:
        raise SpecError(problems)


def _holds_secret(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    return parts.password is not None or any(_SECRET_WORDS.search(name) for name, _ in parse_qsl(parts.query))
