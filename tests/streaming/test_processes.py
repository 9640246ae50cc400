"""A process is named, and known to have ended only where that can be told."""

import os
import signal
from dataclasses import replace

from fxquant.streaming.processes import Process
from tests.processes import forked


def test_this_process_has_not_ended() -> None:
    this = Process.this()
    assert this.pid == os.getpid()
    assert not this.has_ended()
    assert str(this) == f"process {this.pid} on {this.host}"


def test_a_process_has_ended_when_it_is_killed_and_before_its_parent_notices() -> None:
    child = forked(signal.pause)
    known = replace(Process.this(), pid=child)
    assert not known.has_ended()
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert known.has_ended()
    os.waitpid(child, 0)
    assert known.has_ended()


def test_of_processes_elsewhere_nothing_is_known() -> None:
    child = forked(lambda: None)
    os.waitpid(child, 0)
    ended = replace(Process.this(), pid=child)
    assert ended.has_ended()
    assert not replace(ended, host="elsewhere").has_ended()
    assert not replace(ended, namespace="of a container").has_ended()
