"""Processes of ours: their CPU time, and their end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

import psutil  # comes with the embedded PostgreSQL

_SCHEDULERS = 2
"""Of the clocks of a process the one that the scheduler keeps (`CPUCLOCK_SCHED`)."""


def clean_up_on_sigterm() -> None:
    """SIGTERM ends this process as ^C does: with everything that it has started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds, so far, of these processes and of everything they have started, what has ended of it included."""
    total_s = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    total_s += _own_cpu_s(one) + times.children_user + times.children_system
    return total_s


def _own_cpu_s(process: psutil.Process) -> float:
    """By the process's own clock, which counts nanoseconds (Linux: `clock_getcpuclockid(3)`). The figures in /proc,
    which psutil reads, are cut down to ticks of 10 ms, twice for each of a stack's twenty processes."""
    try:
        return time.clock_gettime(~process.pid << 3 | _SCHEDULERS)
    except OSError:  # not on Linux, or it has just ended: then psutil says so
        times = process.cpu_times()
        return times.user + times.system


def stop(process: subprocess.Popen[bytes], within_s: float = 3.0) -> None:
    """End a process that leads a session of its own, with everything in it."""
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if number is signal.SIGTERM:
            with suppress(subprocess.TimeoutExpired):
                process.wait(within_s)
    process.wait()
