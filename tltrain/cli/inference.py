"""The verbs that use a finished model: predict, serve."""

from __future__ import annotations

from typing import Annotated

import typer

from tltrain.cli.arguments import AsJson, RunFolderName


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of this file to the program."""
    for verb in (predict, serve):
        app.command()(verb)


def predict(
    run: RunFolderName,
    source: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="An image, a folder, a pattern, Parquet; here or s3://... and so on."),
    ],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Write .parquet or .csv instead of a table.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE, and begin anew.")] = False,
    image_column: Annotated[
        str | None, typer.Option("--image-column", metavar="NAME", help="Parquet's column of images or paths.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", metavar="N", min=1, help="Images at a time.")] = 64,
    ray: Annotated[bool, typer.Option("--ray", help="Use Ray Data, on the cluster of RAY_ADDRESS or here.")] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, help="With --ray: processes with the model.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classify images with a run's model; goes on where it was stopped."""
    from tltrain.cli import prediction

    if workers is not None and not ray:
        raise typer.BadParameter("--workers is for --ray; without it this process holds the model")
    if force and out is None:
        raise typer.BadParameter("--force is for --out; without it nothing is written")
    options = prediction.Options(run, tuple(source), image_column, batch_size, ray, workers)
    if out is None:
        raise typer.Exit(prediction.predict_to_table(options, as_json=as_json))
    raise typer.Exit(prediction.predict_to_file(options, out, force=force, as_json=as_json))


def serve(
    run: RunFolderName,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", min=1, help="Processes with the model.")] = 1,
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", metavar="N", min=1, help="Most images that are classified together.")
    ] = 32,
    max_wait_ms: Annotated[
        float, typer.Option("--max-wait-ms", metavar="MS", min=0, help="Longest wait for others of a batch.")
    ] = 5.0,
    max_upload_mb: Annotated[
        float, typer.Option("--max-upload-mb", metavar="MB", min=0.001, help="Largest upload that is read.")
    ] = 20.0,
    max_megapixels: Annotated[
        float, typer.Option("--max-megapixels", metavar="N", min=0.001, help="Largest image that is decoded.")
    ] = 50.0,
) -> None:
    """Answer POST /predict with the classes of the image, over HTTP."""
    from tltrain.engine.serve import serve_model
    from tltrain.inference.requests import Limits, ServeOptions

    limits = Limits(max_bytes=round(max_upload_mb * 1e6), max_pixels=round(max_megapixels * 1e6))
    options = ServeOptions(host, port, replicas, max_batch_size, max_wait_ms / 1000, limits)
    serve_model(run, options, tell=lambda text: typer.echo(text, err=True))
