"""Which sockets processes listen on, as the system says. Linux only."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_LISTENS = "0A"
_INODE = re.compile(r"socket:\[(\d+)\]")


def listening(pids: Iterable[int]) -> dict[int, str]:
    """Port -> address, of what these processes listen on over TCP."""
    inodes = {inode for pid in pids for inode in _inodes(pid)}
    found: dict[int, str] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == _LISTENS and fields[9] in inodes:
                found[int(port, 16)] = str(_address(address))
    return found


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address; one of IPv4 may be written as one of IPv6."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def _inodes(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.update(_INODE.findall(os.readlink(entry.path)))
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    words = [struct.pack("=I", int(text[start : start + 8], 16)) for start in range(0, len(text), 8)]
    return ipaddress.ip_address(b"".join(words))
