"""Who works on something: a process on a host, named in files and messages."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

_NAMESPACE = Path("/proc/self/ns/pid")
"""Of the numbers of processes: a container has its own."""


@dataclass(frozen=True)
class Process:
    """A process, as others may be told of it."""

    host: str
    pid: int
    since: str
    """When it said so."""
    namespace: str = ""

    @classmethod
    def this(cls) -> Process:
        """Return this process."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        namespace = os.readlink(_NAMESPACE) if _NAMESPACE.is_symlink() else ""
        return cls(socket.gethostname(), os.getpid(), now, namespace)

    def has_ended(self) -> bool:
        """Say whether it is known to have ended: of other hosts nothing is known."""
        here = Process.this()
        if (self.host, self.namespace) != (here.host, here.namespace) or os.name != "posix":
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state in "XZ"  # it has, and waits for its parent to notice

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"
