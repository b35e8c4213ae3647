"""`make test-servers`: the tests that drive real servers, on Debian's; further arguments go to pytest.

Each of pytest's processes starts servers of its own, stops them at its end, and shares them with nobody. Should it be
killed before that, what it leaves behind becomes this process's, and is ended here: so nothing stays, whatever happens.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from tests.servers.debian import HOME, missing

TESTS = (
    "tests/acceptance",
    "tests/faults/test_short_run.py",
    # what asks most of the database and of Redis
    "tests/integration/test_store.py",
    "tests/integration/test_database.py",
    "tests/integration/test_migrations.py",
    "tests/integration/test_drain.py",
    "tests/integration/test_recovery.py",
    "tests/integration/test_lifecycle_stateful.py",
    "tests/integration/test_tokens.py",
    "tests/integration/test_tokens_stateful.py",
    "tests/integration/test_wakeups.py",
)
PYTEST = ("-n", "2", "--maxschedchunk", "1")
PR_SET_CHILD_SUBREAPER = 36
"""From <linux/prctl.h>."""
GRACE_S = 10.0


def main(arguments: list[str]) -> int:
    if packages := missing():
        print(remedy(packages), file=sys.stderr)
        return 1
    adopt_orphans()
    signal.signal(signal.SIGINT, lambda *_: None)  # ^C is pytest's, which ends its tests and its servers
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="paceline-") as directory:
        Path(directory).chmod(0o711)
        try:
            return await_end(subprocess.Popen(command(arguments), env={**os.environ, HOME: directory}))
        finally:
            end_what_is_left()


def command(arguments: list[str]) -> list[str]:
    """What pytest is asked to do: everything, unless the arguments say what."""
    named = [argument for argument in arguments if argument.startswith("tests")]
    return [sys.executable, "-m", "pytest", *PYTEST, *arguments, *(() if named else TESTS)]


def remedy(packages: list[str]) -> str:
    return (
        f"{', '.join(packages)}: not installed, and these tests want Debian's own servers. As root:\n\n"
        f"    apt-get install --no-install-recommends {' '.join(packages)}\n"
    )


def adopt_orphans() -> None:
    """Become the parent of whatever our descendants leave behind."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def await_end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code. Orphans that end meanwhile are seen off as well, or they would stay as zombies."""
    while True:
        pid, status = os.wait()
        if pid == process.pid:
            return os.waitstatus_to_exitcode(status)


def end_what_is_left() -> None:
    """End all descendants: first as they would like it."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(left, timeout=GRACE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
