"""Prediction with Ray Data: tasks on CPUs decode for processes that hold the model on a GPU, or these do both."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
import warnings
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.exceptions import RayError

from tltrain.data.base import Source
from tltrain.data.preprocessing import Preprocessing
from tltrain.engine.cluster import connected, live_nodes
from tltrain.errors import LostError, ResourceError, TltrainError
from tltrain.inference.decoding import Reader
from tltrain.inference.finished import ModelPlace, open_model
from tltrain.inference.predict import Classified
from tltrain.inference.ranking import Ranking


def classify_on_ray(
    place: ModelPlace, source: Source, requests: Sequence[np.ndarray], *, batch_size: int, workers: int | None
) -> Generator[Classified, None, None]:
    """Yield the classes of the images at each of `requests`, positions int64 [b], in their order.

    On the cluster of RAY_ADDRESS, or on a private one of this machine. Every node has to reach the images and the
    run's folder. workers: processes that hold the model; None for one per GPU, or without GPUs one per CPU, each of
    which decodes what it classifies.

    Raises ResourceError where the cluster is too small, an error of this package that a task has raised, or LostError.
    """
    is_private = "RAY_ADDRESS" not in os.environ
    with connected():
        workers, gpus = _choose_workers(workers)
        _set_up_ray_data()
        decoder: Any = _Decoder(Reader(source, Preprocessing.from_dict(place.card()["preprocessing"])))
        images = ray.data.from_arrow([pa.table({"position": positions}) for positions in requests])
        if gpus:
            images = images.map_batches(decoder, batch_size=None, batch_format="numpy", num_cpus=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray is about to take fewer options
            ranked = images.map_batches(
                _Classifier,
                fn_constructor_args=(place.uri, os.getcwd(), None if gpus else decoder),
                batch_size=batch_size,
                batch_format="numpy",
                num_cpus=0 if gpus else 1,
                num_gpus=gpus,
                compute=ray.data.ActorPoolStrategy(size=min(workers, len(requests))),
                **(_without_restarts() if is_private else {}),
            )
        try:
            # Closed before Ray ends: a thread of Ray Data that still ran would start a Ray of its own.
            with contextlib.closing(_batches(ranked)) as batches:
                for batch in batches:
                    yield _classified(batch)
        except RayError as error:
            raise _translated(error) from error


def _batches(ranked: ray.data.Dataset) -> Generator[Any, None, None]:
    yield from ranked.iter_batches(batch_size=None, batch_format="numpy")


def _without_restarts() -> dict[str, Any]:
    """Return options by which the processes on the one node of a private cluster are not started again.

    Where they are, Ray notes on stderr what a second one would lack.
    """
    parameters = inspect.signature(ray.data.Dataset.map_batches).parameters.values()
    is_taken = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {"max_restarts": 0} if is_taken else {}


def _choose_workers(wanted: int | None) -> tuple[int, int]:
    """Return how many processes hold the model, and the GPUs of each. Raises ResourceError where they do not fit."""
    nodes = live_nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    most, kind = (gpus, "GPUs") if gpus else (cpus, "CPUs")
    workers = most if wanted is None else wanted
    if workers > most or cpus < 1:
        what = f"{workers} processes with the model were asked for, and the cluster has {cpus} CPUs and {gpus} GPUs"
        raise ResourceError(what, f"There can be one on each of its {kind} (--workers), and decoding takes a CPU")
    return workers, 1 if gpus else 0


def _set_up_ray_data() -> None:
    """Keep the order of images, so that few parts are open at a time, and let nothing of Ray's own be printed."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if not logging.getLogger("tltrain").isEnabledFor(logging.DEBUG):
        logging.getLogger("ray.data").setLevel(logging.ERROR)


class _Decoder:
    """Positions -> images uint8 [b, 3, H, W], and for bad ones a reason beside an image of zeros."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        positions = batch["position"]
        decoded = self._reader.decode(positions)
        images = np.zeros((len(positions), *decoded.images.shape[1:]), np.uint8)
        images[np.isin(positions, decoded.positions)] = decoded.images.numpy()
        reasons = np.array([decoded.bad.get(position, "") for position in positions.tolist()], dtype=object)
        return {"position": positions, "image": images, "reason": reasons}


class _Classifier:
    """A process with the model; it decodes as well where it is given a decoder."""

    def __init__(self, model_uri: str, python_path: str, decoder: _Decoder | None) -> None:
        if python_path not in sys.path:  # a factory of the user's own may stand there
            sys.path.insert(0, python_path)
        self._model, self._decoder = open_model(model_uri), decoder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._decoder is not None:
            batch = self._decoder(batch)
        ranking = self._model.rank(torch.from_numpy(np.array(batch["image"])))
        kept = {"position": batch["position"], "reason": batch["reason"]}
        return {**kept, "classes": ranking.classes, "probabilities": ranking.probabilities}


def _classified(batch: dict[str, np.ndarray]) -> Classified:
    good = batch["reason"] == ""
    bad = dict(zip(batch["position"][~good].tolist(), batch["reason"][~good].tolist(), strict=True))
    return Classified(batch["position"][good], Ranking(batch["classes"][good], batch["probabilities"][good]), bad)


def _translated(error: BaseException) -> TltrainError:
    """Return the error of this package behind one of Ray's, or one that says what Ray said."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, TltrainError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return LostError(f"Ray has given up: {error}", "Run the same command again: what is done is kept")
