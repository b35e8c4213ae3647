"""A line of the log that cannot be written undoes nothing of what it tells of."""

import subprocess
import sys

import pytest

SCRIPT = """
from workers.telemetry.logs import configure_logging, logger
configure_logging("{log_format}")
log = logger("a.b")
log.info("first")
log.error("second")
print("still here")
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("stderr", ["/dev/full", "&-"], ids=["full", "closed"])
def test_nobody_hears_and_everything_goes_on(log_format: str, stderr: str) -> None:
    script = SCRIPT.format(log_format=log_format)
    told = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" 2>{stderr}', sys.executable, script], stdout=subprocess.PIPE, timeout=60
    )
    assert (told.returncode, told.stdout) == (0, b"still here\n")
