"""Who is alive.  A payment in flight names its owner; the claim dies with the owner.

On one host the owner is a process: boot, pid and the start time of that pid, so that neither a
reboot nor a recycled pid keeps a claim alive.  In doubt an owner is dead: then an identical call
re-presents the same proof, which can be settled at most once, instead of signing a second one.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_PIDS: Final = Path("/proc/self/ns/pid")


def new_owner() -> str:
    """A name for this process that no other process, before or after, has."""
    pid = os.getpid()
    return f"{boot_id()}:{pid}:{_started(pid)}:{secrets.token_hex(4)}"


def is_alive(owner: str) -> bool:
    """Whether the process that made *owner* still runs on this host, since the same boot."""
    boot, _, rest = owner.partition(":")
    pid, _, rest = rest.partition(":")
    started = rest.rpartition(":")[0]
    if boot != boot_id() or not pid.isdigit() or not started:
        return False
    return _started(int(pid)) == started


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Identity of this boot of this host; of the host alone where the system tells no more.

    Containers on one host have pids of their own, so the pid namespace is part of it.
    """
    try:
        boot = _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return f"{uuid.getnode():x}"
    try:
        return f"{boot}-{_PIDS.readlink().name.strip('pid:[]')}"
    except OSError:
        return boot


def _started(pid: int) -> str:
    """When *pid* started, in the system's own words; empty if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "" if sys.platform == "linux" else _started_by_ps(pid)
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name may hold spaces and brackets
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _started_by_ps(pid: int) -> str:
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return "".join(answer.stdout.split())
