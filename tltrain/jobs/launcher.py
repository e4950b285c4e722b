"""Ray's cluster launcher (`ray up`), run as a program: the files it takes, and starting and ending their clusters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tltrain.errors import Problem, ResourceError, SpecError
from tltrain.jobs.clusters import RayUpCluster
from tltrain.jobs.endpoint import ray_program
from tltrain.jobs.local_state import make_token, without_ray
from tltrain.spec.load import read_text

_TOKEN_MODE = re.compile(r"\bRAY_AUTH_MODE=token\b")
_STARTS_RAY = re.compile(r"\bray start\b")
_START_KEYS = ("head_start_ray_commands", "worker_start_ray_commands")


def launch(cluster: RayUpCluster) -> None:
    """Start or update the cluster, and make its token's file where it is missing.

    Raises SpecError where the launcher's file would start it without a token, and ResourceError where it does not
    start.
    """
    config = read_launcher_file(cluster.config)
    if problems := token_problems(config, cluster.config):
        raise SpecError(problems)
    source, _, path = cluster.token.partition(":")
    if source == "file":
        make_token(Path(path))
    _run("up", cluster.config, config)


def terminate(cluster: RayUpCluster) -> None:
    """End the cluster: its machines, or Ray on machines of one's own. Raises SpecError and ResourceError."""
    _run("down", cluster.config, read_launcher_file(cluster.config))


def read_launcher_file(path: str) -> dict[str, Any]:
    """The plain values of a launcher's file. Raises SpecError."""
    text = read_text(Path(path))
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, AssertionError) as error:  # the last two for odd %YAML lines
        raise SpecError(Problem(f"is not valid YAML: {error}", "Correct it", path)) from error
    if not isinstance(values, dict) or not isinstance(values.get("provider"), dict):
        raise SpecError(Problem("is no file of Ray's cluster launcher", "cluster/ray-up/ has examples", path))
    return values


def token_problems(config: dict[str, Any], where: str) -> list[Problem]:
    """The start commands that would start Ray without a token."""
    problems = []
    for key in _START_KEYS:
        commands = [command for command in config.get(key) or [""] if _STARTS_RAY.search(command) or not command]
        if not all(_TOKEN_MODE.search(command) for command in commands):
            what = "Ray would start without a token, and whoever reaches it runs programs on it"
            action = "Write RAY_AUTH_MODE=token into the command, as cluster/ray-up/ does"
            problems.append(Problem(what, action, where, key))
    return problems


def launcher_command(verb: str, config: str) -> list[str]:
    """The command for `up` or `down`: it asks nothing, and looks at the file as it is now."""
    return [ray_program(), verb, config, "--yes", *(["--no-config-cache"] if verb == "up" else [])]


def _run(verb: str, config: str, values: dict[str, Any]) -> None:
    command = launcher_command(verb, config)
    environment = without_ray(os.environ)
    if values["provider"].get("type") == "local":
        # The newer autoscaler starts only the head on machines of one's own.
        environment["RAY_UP_enable_autoscaler_v2"] = "0"
    # What it prints is for the user to follow; our own answer alone is for stdout.
    done = subprocess.run(command, env=environment, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise ResourceError(f"`ray {verb}` ended with code {done.returncode}", f"Correct {config}, then try again")
