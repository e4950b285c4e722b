"""The verbs around jobs on a cluster: submit, jobs, status, logs, stop, retry, rm."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tltrain.cli import completion
from tltrain.cli.arguments import AsJson, Sets, SpecPath, load
from tltrain.errors import EXIT_INTERRUPTED, SpecError

if TYPE_CHECKING:
    from tltrain.jobs.ledger import Job, Ledger

JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's id, or its first letters where they are unique.")]


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    for verb in (submit, jobs, status, logs, stop, retry, rm):
        app.command()(verb)


def submit(
    spec: SpecPath,
    cluster: Annotated[
        str,
        typer.Option(
            "--cluster",
            metavar="NAME",
            help="A cluster file's name or path.",
            autocompletion=completion.clusters,
        ),
    ],
    sets: Sets = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return at once instead of following.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Wait in line while the cluster is full.")] = False,
    priority: Annotated[int, typer.Option("--priority", metavar="N", help="In the queue, more goes first.")] = 0,
    max_duration: Annotated[
        float | None,
        typer.Option("--max-duration", metavar="S", min=1, help="Seconds after which it ends, retries included."),
    ] = None,
    upload: Annotated[
        list[Path] | None, typer.Option("--upload", metavar="PATH", help="A file or folder that the job needs.")
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the tltrain of the cluster's image instead of sending this one.")
    ] = False,
) -> None:
    """Run a spec on a cluster, and follow it there."""
    from tltrain.cli.job_views import print_request, show_submitted, warn_of_local_paths
    from tltrain.jobs.clusters import load_cluster
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.submission import Options, plan_job
    from tltrain.jobs.submission import submit as send

    loaded_cluster, loaded = load_cluster(cluster), load(spec, sets)
    options = Options(upload or (), not installed, queue, priority, max_duration)
    job, package = plan_job(loaded.spec, loaded_cluster, options)
    warn_of_local_paths(loaded.spec, loaded_cluster, options.uploads)
    if dry_run:
        print_request(job, loaded_cluster, package)
        return
    with Ledger() as ledger:
        job = send(ledger, job, package)
        show_submitted(job, loaded_cluster, package)
        if not detach:
            raise typer.Exit(_follow(ledger, job, retrying=True))
        if job.latest.waits:
            _wait_in_background(job)


def jobs(
    all_jobs: Annotated[bool, typer.Option("-a", "--all", help="Show those that have ended as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs that were submitted from here."""
    from tltrain.cli.job_views import as_dict, table
    from tltrain.cli.run_tables import width
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.tracker import refresh

    with Ledger() as ledger:
        known = refresh(ledger, ledger.jobs())
    shown = [job for job in known if all_jobs or job.latest.state.is_active]
    if as_json:
        print(json.dumps([as_dict(job) for job in shown], indent=2))
    elif shown:
        print("\n".join(table(shown, width())))
    else:
        ended = f"; `tltrain jobs -a` lists {len(known)} that have ended" if known else ""
        print(f"No jobs are active{ended}.", file=sys.stderr)


def status(job_id: JobId, as_json: AsJson = False) -> None:
    """Show where a job is, and why."""
    from tltrain.cli.job_views import as_dict, details
    from tltrain.cli.run_tables import width
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.tracker import refresh

    with Ledger() as ledger:
        job = refresh(ledger, [ledger.find(job_id)])[0]
    print(json.dumps(as_dict(job), indent=2) if as_json else "\n".join(details(job, width())))


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job prints."""
    from tltrain.jobs.clusters import load_cluster
    from tltrain.jobs.endpoint import reach
    from tltrain.jobs.failures import failure_lines
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.ray_jobs import RayJobs
    from tltrain.jobs.tracker import look_at, settle

    with Ledger() as ledger:
        job = ledger.find(job_id)
        if follow:
            raise typer.Exit(_follow(ledger, job, retrying=False))
        if job.latest.waits:
            raise SpecError(f"{job.id} has printed nothing: it waits in line", f"tltrain logs -f {job.id}")
        with reach(load_cluster(job.cluster_path)) as endpoint:
            ray_jobs = RayJobs(endpoint)
            job = settle(ledger, job, look_at(ray_jobs, [job.latest.submission_id]))
            log = ray_jobs.logs(job.latest.submission_id)
    if job.latest.cause is not None:
        for line in [*failure_lines(log), str(job.latest.verdict)]:
            print(line, file=sys.stderr)
    sys.stdout.write(log)


def stop(job_id: JobId) -> None:
    """End a job; its run folder stays and can be resumed."""
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.submission import stop as stop_job

    with Ledger() as ledger:
        job = stop_job(ledger, ledger.find(job_id))
    print(f"{job.id} {job.latest.verdict}", file=sys.stderr)
    raise typer.Exit(1 if job.latest.state.is_active else 0)


def retry(
    job_id: JobId,
    force: Annotated[bool, typer.Option("--force", help="Also where it would fail in the same way.")] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Return at once instead of following.")] = False,
) -> None:
    """Run a job again; it goes on from its newest checkpoint."""
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.submission import retry as retry_job

    with Ledger() as ledger:
        job, what = retry_job(ledger, ledger.find(job_id), force=force)
        print(f"{job.id}: {what}.", file=sys.stderr)
        if not detach:
            raise typer.Exit(_follow(ledger, job, retrying=True))


def rm(job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs that have ended.")]) -> None:
    """Forget jobs, here and on their clusters; run folders stay."""
    from tltrain.jobs.ledger import Ledger
    from tltrain.jobs.submission import remove

    with Ledger() as ledger:
        remove(ledger, [ledger.find(job_id) for job_id in job_ids])


def _follow(ledger: Ledger, job: Job, *, retrying: bool) -> int:
    """Follow a job to its end and return the exit code; Ctrl-C leaves it alive."""
    from tltrain.cli.job_views import exit_code
    from tltrain.jobs.follow import Follower

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        verdict = Follower(ledger, job, write, tell, retrying=retrying).follow()
    except KeyboardInterrupt:
        tell(f"\n{job.id} goes on without this terminal. Stop it: tltrain stop {job.id}")
        tell(f"Follow it again: tltrain logs -f {job.id}")
        return EXIT_INTERRUPTED
    tell(f"{job.id} {verdict}")
    return exit_code(verdict)


def _wait_in_background(job: Job) -> None:
    """Leave a process behind that waits for the job's turn and sends it; it goes on when the terminal closes."""
    import subprocess

    command = [sys.executable, "-m", "tltrain", "logs", "-f", job.id]
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)
    print(f"Process {process.pid} waits for its turn. Without it: tltrain logs -f {job.id}", file=sys.stderr)
