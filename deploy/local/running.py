"""How other commands find a stack that runs: a file in its data directory, readable by its owner alone.

`paceline check`, `token`, `send`, `migrate` and `rekey` then mean the same servers, secret and port as `paceline up`.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.settings import variables

_FILE = "running.json"


@dataclass(frozen=True, slots=True)
class Running:
    """A stack that runs: where its API is, and its settings as environment variables."""

    url: str
    environ: Mapping[str, str]


def tell(data_dir: Path, url: str, environ: Mapping[str, str]) -> None:
    """Say that a stack of this process runs here."""
    settings = {name: environ[name] for name in variables() if environ.get(name)}
    new = data_dir / f"{_FILE}.{os.getpid()}"
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"pid": os.getpid(), "url": url, "environ": settings}, file)
    new.rename(data_dir / _FILE)


def forget(data_dir: Path) -> None:
    (data_dir / _FILE).unlink(missing_ok=True)


def find(data_dir: Path) -> Running | None:
    """The stack that runs on this data directory, if one does and it is ours to know."""
    try:
        about = json.loads((data_dir / _FILE).read_text())
        os.kill(about["pid"], 0)
        return Running(about["url"], about["environ"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
