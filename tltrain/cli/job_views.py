"""How jobs are shown: as a table, in detail, as JSON, and as a request that would be sent."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tltrain.cli.run_tables import NARROWEST_CELL, cut, width
from tltrain.jobs.clusters import AddressCluster, LoadedCluster, LocalCluster
from tltrain.jobs.ledger import Job
from tltrain.jobs.request import local_paths
from tltrain.jobs.states import Cause, State, Verdict
from tltrain.jobs.submission import decide_retry, request_for
from tltrain.jobs.upload import SPEC_NAME, Package, size_text
from tltrain.spec.schema import Spec

_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_EXIT_CODES = {Cause.DATA: 4, Cause.RESOURCES: 3, Cause.OUT_OF_MEMORY: 3}


def exit_code(verdict: Verdict) -> int:
    """The exit code of a command that followed a job to this end."""
    if verdict.state is State.SUCCEEDED:
        return 0
    return _EXIT_CODES.get(verdict.cause, 1) if verdict.cause is not None else 1


def print_request(job: Job, cluster: LoadedCluster, package: Package) -> None:
    """Print, as JSON, exactly what would be sent; the random part of the id is drawn anew each time."""
    request = request_for(job, cluster, package)
    shown = {
        "cluster": cluster.name,
        "request": request.body(),
        "upload": {
            "bytes": len(package.content),
            "files": [{"name": name, "bytes": size} for name, size in package.files],
            "left_out": list(package.left_out),
        },
    }
    print(json.dumps(shown, indent=2))


def warn_of_local_paths(spec: Spec, cluster: LoadedCluster, uploads: Sequence[Path]) -> None:
    """Log the paths that the cluster's machines must have as this one has them."""
    if isinstance(cluster.cluster, LocalCluster):
        return
    for key, path in local_paths(spec, uploads):
        how = "must be reached by all its machines" if key == "storage" else "must be there too, or named with --upload"
        logging.getLogger("tltrain").warning("%s: %s is not sent to %s: it %s", key, path, cluster.name, how)


def show_submitted(job: Job, cluster: LoadedCluster, package: Package) -> None:
    """Say on stderr what was sent where, and the next commands."""
    own = [(name, size) for name, size in package.files if not name.startswith("tltrain/") and name != SPEC_NAME]
    sizes = [f"{name} {size_text(size)}" for name, size in own[:5]] + ([f"and {len(own) - 5} more"] if own[5:] else [])
    what = "recorded, and waits in line for" if job.latest.waits else "submitted to"
    upload = f"{size_text(len(package.content))}: {', '.join(['the spec', 'tltrain', *sizes])}"
    facts = [("upload", upload)]
    if package.left_out:
        facts.append(("left out", ", ".join([*package.left_out[:5], *(["..."] if package.left_out[5:] else [])])))
    facts += _next(f"tltrain status {job.id}", f"tltrain logs -f {job.id}", f"tltrain stop {job.id}")
    lines = [f"{job.id} {what} {cluster.name}{_dashboard(cluster)}"]
    print("\n".join([*lines, *(f"  {line}" for line in _fact_lines(facts, width() - 2))]), file=sys.stderr, flush=True)


def _next(*commands: str) -> list[tuple[str, str]]:
    """Facts that name commands, one a line."""
    return [("next" if number == 0 else "", command) for number, command in enumerate(commands)]


def _fact_lines(facts: Sequence[tuple[str, str]], columns: int) -> list[str]:
    """Names and values side by side; a value that is too long goes on below itself."""
    indent = max(len(name) for name, _ in facts) + 2
    wrapped = ((name, textwrap.wrap(value, max(20, columns - indent), **_WHOLE_WORDS) or [""]) for name, value in facts)
    return [
        f"{name if number == 0 else '':<{indent}}{part}".rstrip()
        for name, parts in wrapped
        for number, part in enumerate(parts)
    ]


def _dashboard(loaded: LoadedCluster) -> str:
    cluster = loaded.cluster
    if isinstance(cluster, AddressCluster) and cluster.url:
        return f" ({cluster.url})"
    if isinstance(cluster, LocalCluster):
        from tltrain.jobs.local_state import read_state

        state = read_state(loaded.name)
        return f" ({state.url})" if state else ""
    return ""


def table(jobs: Sequence[Job], columns: int) -> list[str]:
    """One line per job under a header, the newest first, in `columns` columns where the ids let it."""
    rows = [("ID", "STATE", "CLUSTER", "AGE", "ATTEMPT", "WHY")]
    for job in reversed(jobs):
        verdict, age = job.latest.verdict, _age(time.time() - job.created_at)
        why = f"{verdict.cause.value}: {verdict.reason}" if verdict.cause else verdict.reason
        rows.append((job.id, verdict.state.value, job.cluster, age, str(job.latest.number), why))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    room = max(NARROWEST_CELL, columns - sum(widths) - 2 * len(widths))
    return [
        "  ".join(
            [*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), cut(row[-1], room)]
        ).rstrip()
        for row in rows
    ]


def details(job: Job, columns: int) -> list[str]:
    """What is known of a job, one fact a line; what is longer than `columns` goes on below."""
    facts = [
        ("job", job.id),
        ("state", str(job.latest.verdict)),
        ("cluster", f"{job.cluster} ({job.cluster_path})"),
        ("run", f"{job.storage.partition('?')[0].rstrip('/')}/{job.run}"),
        ("age", _age(time.time() - job.created_at)),
    ]
    if job.max_duration_s is not None:
        facts.append(("at most", f"{job.max_duration_s:g} s"))
    for attempt in job.attempts if len(job.attempts) > 1 else ():
        with_what = f" with {', '.join(attempt.sets)}" if attempt.sets else ""
        facts.append((f"attempt {attempt.number}", f"{attempt.verdict}{with_what}"))
    return _fact_lines([*facts, *_what_next(job)], columns)


def _what_next(job: Job) -> list[tuple[str, str]]:
    """The commands that make sense now; of a failure that the policy does not repeat, why."""
    if job.latest.state.is_active:
        return _next(f"tltrain logs -f {job.id}", f"tltrain stop {job.id}")
    if job.latest.state is State.SUCCEEDED:
        return _next(f"tltrain logs {job.id}")
    decision = decide_retry(job) if job.latest.state is State.FAILED else None
    if decision is None or decision.retry:
        return _next(f"tltrain logs {job.id}", f"tltrain retry {job.id}")
    return [("no retry", decision.reason), *_next(f"tltrain logs {job.id}", f"tltrain retry --force {job.id}")]


def as_dict(job: Job) -> dict[str, Any]:
    """A job for scripts."""
    verdict = job.latest.verdict
    return {
        "id": job.id,
        "run": job.run,
        "storage": job.storage,
        "cluster": job.cluster,
        "state": verdict.state.value,
        "cause": verdict.cause and verdict.cause.value,
        "reason": verdict.reason,
        "priority": job.priority,
        "max_duration_s": job.max_duration_s,
        "created_at": job.created_at,
        "ended_at": job.latest.ended_at,
        "attempts": [
            {
                "number": attempt.number,
                "submission_id": attempt.submission_id,
                "state": attempt.state.value,
                "cause": attempt.cause and attempt.cause.value,
                "sets": list(attempt.sets),
            }
            for attempt in job.attempts
        ],
    }


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
