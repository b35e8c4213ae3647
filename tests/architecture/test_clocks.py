"""No module compares the wall clocks of two machines: a worker whose clock is off by a minute works like any other."""

import re
from pathlib import Path

WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(|\bexpires=|\beta=|\bcountdown=")
"""Readings of this machine's wall clock, and Celery's options that make a worker compare its own with a publisher's."""

READ_IT = (
    "workers/channels",  # beside the upstream's own Date
    "workers/services/amend.py",  # what a caller asks for, as are the last three
    "workers/services/bulk.py",  # in new ids, which only have to be unique
    "workers/services/failures.py",
    "workers/services/reader.py",
    "workers/services/submit.py",
)


def test_workers_and_pacers_read_no_wall_clock(repository: Path) -> None:
    files = [path for room in ("workers", "ratelimit") for path in (repository / room).rglob("*.py")]
    found = {str(path.relative_to(repository)) for path in files if WALL_CLOCK.search(path.read_text())}
    assert [name for name in sorted(found) if not name.startswith(READ_IT)] == []
    assert WALL_CLOCK.search("drain.apply_async((account_id,), expires=30)")
