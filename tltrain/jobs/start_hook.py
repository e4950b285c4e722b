"""What `ray start` calls by way of RAY_START_HOOK: keeps a head on this machine's own interface."""

from __future__ import annotations

from typing import Any

LOOPBACK = "127.0.0.1"
HOOK = f"{__name__}.stay_on_loopback"


def stay_on_loopback(ray_params: Any, head: bool) -> None:
    """Let all services of a head listen on 127.0.0.1, which `--node-ip-address 127.0.0.1` does not: Ray puts the
    machine's outer address in its place. The server of Ray Client, which no job needs, is left out."""
    assert head, "this hook is for heads"
    ray_params.node_ip_address = LOOPBACK
    ray_params.node_name = LOOPBACK
    ray_params.ray_client_server_port = None
