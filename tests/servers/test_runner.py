"""What `make test-servers` is about to do, and what it says where it cannot."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers.__main__ import TESTS, command, remedy
from tests.servers.debian import missing


def test_what_is_not_installed_is_named_in_a_line_to_paste(tmp_path: Path) -> None:
    lacking = missing(
        {"postgresql-15": tmp_path, "redis-server": tmp_path / "none", "rabbitmq-server": tmp_path / "no"}
    )
    assert lacking == ["redis-server", "rabbitmq-server"]
    assert "apt-get install --no-install-recommends redis-server rabbitmq-server\n" in remedy(lacking)


def test_it_runs_all_it_is_for_unless_told_what(repository: Path) -> None:
    assert command([])[-len(TESTS) :] == list(TESTS)
    assert all((repository / path).exists() for path in TESTS)
    assert command(["-x", "tests/unit"])[-2:] == ["-x", "tests/unit"]


@pytest.mark.skipif(sys.platform != "linux", reason="Debian's servers run on Linux")
def test_what_its_tests_leave_behind_is_ended(repository: Path) -> None:
    orphan = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    program = f"""
import subprocess, sys
from tests.servers.__main__ import adopt_orphans, await_end, end_what_is_left

adopt_orphans()
assert await_end(subprocess.Popen([sys.executable, "-c", {orphan!r}])) == 0
end_what_is_left()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not psutil.pid_exists(int(done.stdout))
