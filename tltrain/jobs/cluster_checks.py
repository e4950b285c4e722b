"""What settings of a cluster file must be, beyond their types: references, addresses, and what may be reached how."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from tltrain.errors import Problem
from tltrain.spec.yaml_text import printable

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:%\[\]-]*")
_QUANTITY = re.compile(r"[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)")
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Connection(Protocol):
    """What of a cluster file says how its Jobs API is reached."""

    @property
    def url(self) -> str | None: ...
    @property
    def token(self) -> str | None: ...
    @property
    def ca_file(self) -> str | None: ...
    @property
    def allow_plain_http(self) -> bool: ...
    @property
    def ssh_tunnel(self) -> object | None: ...


def check_reference(text: str) -> str:
    """A reference to a secret. Raises ValueError that does not show it, for it may be the secret itself."""
    source, _, name = text.partition(":")
    if source == "env" and _VARIABLE.fullmatch(name):
        return text
    if source == "file" and name.strip():
        return text
    raise ValueError("this is no reference to a secret. Write env:NAME or file:PATH, never the secret itself")


def check_variable(secrets: Mapping[str, str]) -> Mapping[str, str]:
    """Names of environment variables and what they are read from on the cluster. Raises ValueError."""
    for name, reference in secrets.items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{printable(name)} is no name of an environment variable")
        check_reference(reference)
        if reference.startswith("file:") and not reference.startswith("file:/"):
            raise ValueError(f"the file of {name} is read on the cluster. Write its absolute path: file:/PATH")
    return secrets


def check_claim(volumes: Mapping[str, str]) -> Mapping[str, str]:
    """Folders and the claims that are mounted there. Raises ValueError."""
    for folder, claim in volumes.items():
        if not folder.startswith("/"):
            raise ValueError(f"{printable(folder)} is no absolute path in the pods")
        if not _CLAIM.fullmatch(claim):
            raise ValueError(f"{printable(claim)} is no name of a PersistentVolumeClaim")
    return volumes


def check_quantity(text: str) -> str:
    """An amount of memory in Kubernetes' words. Raises ValueError."""
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{printable(text)} is no amount of memory. Write for example 16Gi")
    return text


def check_host(text: str) -> str:
    """A host's or user's name, which ssh must not take for an option. Raises ValueError."""
    if not _HOST.fullmatch(text):
        raise ValueError(f"{printable(text)} is no name of a host or user")
    return text


def check_url(text: str) -> str:
    """The address of a dashboard. Raises ValueError that does not repeat a password in it."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"the address cannot be read: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("a password stands in the address. Give the token by reference, as `token: env:NAME`")
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{printable(text)} is no http address. Write for example https://HOST:8265")
    if parts.query or parts.fragment:
        raise ValueError("an address ends before ? and #. Leave out what is behind them")
    return text.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine's own interface."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connection_problems(cluster: Connection, wrong: Collection[str]) -> Iterator[Problem]:
    """What is wrong between the settings of an address; `wrong` are those that are faulty by themselves."""
    url, tunnel = cluster.url, cluster.ssh_tunnel
    if not {"url", "ssh_tunnel"} & set(wrong):
        if (url is None) == (tunnel is None):
            what = "url and ssh_tunnel are both given" if url else "neither url nor ssh_tunnel is given"
            yield Problem(what, "Give one of them", key="url")
            return
        if "token" not in wrong and cluster.token is None and not (url and is_loopback(url)):
            what = "whoever reaches a Ray cluster without a token runs programs on it"
            action = "Turn its token mode on (RAY_AUTH_MODE=token), and give env:NAME or file:PATH"
            yield Problem(what, action, key="token")
    if url is None or "url" in wrong:
        return
    is_plain = urlsplit(url).scheme == "http"
    if is_plain and not is_loopback(url) and not cluster.allow_plain_http and "allow_plain_http" not in wrong:
        what = "plain http to another host shows the token and the jobs to whoever listens"
        yield Problem(what, "Use https or ssh_tunnel, or accept it with allow_plain_http: true", key="url")
    if is_plain and cluster.ca_file is not None and "ca_file" not in wrong:
        yield Problem("plain http shows no certificate to check", "Use https, or leave it out", key="ca_file")
