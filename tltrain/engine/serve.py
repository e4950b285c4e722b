"""Ray Serve: a finished model behind HTTP, on a private Ray of this machine that ends with this process."""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from tltrain.engine.cluster import live_nodes, private_cluster
from tltrain.errors import ResourceError, RunError
from tltrain.inference.finished import find_model
from tltrain.inference.requests import PREDICT, ServeOptions

EXTRA = ("starlette", "uvicorn", "python_multipart")
APPLICATION = "tltrain"
WAITING_BATCHES = 4
"""As many batches may wait at a replica, and as many before it; further requests are answered with 503."""
_LOOK_EVERY_S = 1.0


def serve_model(run: str, options: ServeOptions, tell: Callable[[str], None]) -> None:
    """Serve the model that `find_model` finds at `run` until Ctrl-C or SIGTERM. tell: shows a line.

    Raises ResourceError where the extra is missing, the port is taken or there are too few CPUs or GPUs, RunError
    where the model cannot be brought up.
    """
    if not all(importlib.util.find_spec(name) for name in EXTRA):
        raise ResourceError("serving needs packages that are not installed", "pip install 'tltrain[serve]'")
    place = find_model(run)
    port = _free_port(options.host, options.port)
    with private_cluster(), _terminated_like_interrupted():  # Ray has a handler of its own
        from ray import serve

        _bring_up(serve, place.uri, options, port)
        try:
            tell(f"Serving {place.name}: POST an image to {_address(options.host, port)}{PREDICT}. Ctrl-C ends it.")
            if not _is_loopback(options.host):
                tell(f"warning: anyone who reaches {options.host} may use it: there is no authentication")
            _wait(serve)
        finally:
            serve.delete(APPLICATION)  # lets requests end; Serve itself goes with its cluster


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0. Raises ResourceError where it cannot be listened at."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((host, port))
            return taken.getsockname()[1]
    except OSError as error:
        what = f"{host}:{port} cannot be listened at: {error.strerror or error}"
        raise ResourceError(what, "Choose another with --port or --host; --port 0 takes a free one") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, for a `with` block."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _bring_up(serve: Any, uri: str, options: ServeOptions, port: int) -> None:
    """Start the proxy and the replicas, and return when they answer. Raises ResourceError or RunError."""
    from tltrain.engine.replica import Replica

    is_verbose = logging.getLogger("tltrain").isEnabledFor(logging.DEBUG)
    level = "INFO" if is_verbose else "CRITICAL"
    logging.getLogger("ray.serve").setLevel(level)
    log = {"log_level": level, "enable_access_log": is_verbose}
    cpus, gpus = sum(node.cpus for node in live_nodes()), sum(node.gpus for node in live_nodes())
    if options.replicas > (gpus or cpus):
        has = f"{gpus} GPUs" if gpus else f"{cpus} CPUs"
        raise ResourceError(f"{options.replicas} replicas were asked for, and there are {has}", "Ask for fewer")
    waiting = WAITING_BATCHES * options.max_batch_size
    deployment = serve.deployment(
        Replica,
        name="Model",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if gpus else 0},
        max_ongoing_requests=waiting,
        max_queued_requests=waiting,
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": options.host, "port": port}, logging_config=log)
    threads = max(1, cpus // options.replicas)
    try:
        serve.run(deployment.bind(uri, options, threads, os.getcwd()), name=APPLICATION, logging_config=log)
    except RuntimeError as error:
        message = serve.status().applications[APPLICATION].message.strip().splitlines()
        raise RunError(f"the model could not be brought up: {message[-1] if message else error}") from error


def _wait(serve: Any) -> None:
    """Return at Ctrl-C or SIGTERM. Raises RunError where the replicas are beyond repair."""
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(_LOOK_EVERY_S)
            application = serve.status().applications[APPLICATION]
            if application.status == "DEPLOY_FAILED":
                raise RunError(f"the model's processes end again and again: {application.message}")
