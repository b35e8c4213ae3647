"""The wheel, in an environment of its own, away from the source."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.acceptance.test_up import Up

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SOURCE = ("api", "workers", "ratelimit", "deploy", "celeryconfig.py", "pyproject.toml", "README.md", "LICENSE")


def source_files() -> list[str]:
    """What belongs to the distribution, without what was built."""
    roots = [ROOT / name for name in SOURCE]
    files = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*")) if path.is_file()]
    built = {"__pycache__"}
    return [str(path.relative_to(ROOT)) for path in files if not built & set(path.parts)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside the source."""
    source, made = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in source_files():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(made), str(source)], check=True, cwd=made, timeout=120)
    [found] = made.glob("*.whl")
    return found


def test_the_wheel_has_everything_but_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert set(source_files()) - there == {"pyproject.toml", "README.md", "LICENSE"}
    assert {"api/py.typed", "workers/py.typed", "ratelimit/py.typed", "deploy/py.typed"} <= there
    assert {name.split("/")[0] for name in there} == {"api", "workers", "ratelimit", "deploy", "celeryconfig.py"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with this wheel, and what it depends on from the one that runs the tests."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    command = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True, cwd=home, timeout=120)
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # its own .pth files are not read
    return home / "bin"


def test_the_command_works_from_any_directory(installed: Path, tmp_path: Path, addresses: dict[str, str]) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "paceline"), *arguments]
        environ = {"PATH": os.environ["PATH"]}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)

    assert run("--version").stdout.strip() == VERSION
    checked = run("check")
    assert (checked.returncode, "DATABASE_URL" in checked.stdout) == (1, True)
    where = [str(installed / "python"), "-c", "import deploy.cli; print(deploy.cli.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(installed.parent)), "the wheel is what is tried, not the source"
    started = Up(tmp_path, command=[str(installed / "paceline")], **addresses)
    try:
        assert started.send("fan-1") == 202
        started.await_line(started.terminal, "  sent       msg_")
        assert run("check").returncode == 0
    finally:
        assert started.interrupt(60) == 0
