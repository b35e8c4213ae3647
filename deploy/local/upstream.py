"""Which upstream a local Paceline sends to: the one that is named, the one of before, or the sandbox for new data.

The choice is kept in the data directory, since what waits there was meant for that upstream.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

SANDBOX = "sandbox"
_FILE = "upstream"


@dataclass(frozen=True, slots=True)
class Choice:
    """base_url: None for the sandbox, "" for the setting's default. words: for people; {sandbox} is its address."""

    base_url: str | None
    words: str


def choose(*, asked: bool | None, named: str, before: str, new: bool) -> Choice:
    """asked: --sandbox or --no-sandbox. named: ONLYFANS_BASE_URL. before: what was kept. new: no data were there."""
    if asked or (asked is None and not named and (before == SANDBOX or (new and not before))):
        how = "for a real one set ONLYFANS_BASE_URL and ONLYFANS_API_KEY, in the environment or in .env"
        return Choice(None, f"messages go to the sandbox at {{sandbox}}, an upstream to try things out on; {how}")
    if named:
        more = ", also those that waited for the sandbox" if before == SANDBOX else ""
        return Choice(named, f"messages go to {shown(named)}{more}")
    if before and before != SANDBOX:
        return Choice(before, f"messages go to {shown(before)}, as before; ONLYFANS_BASE_URL changes that")
    how = "set it, or choose --sandbox"
    return Choice("", f"ONLYFANS_BASE_URL is not set, so messages go to http://127.0.0.1:9000; {how}")


def kept(data_dir: Path) -> str:
    """The choice of before; "" if none was kept."""
    try:
        return (data_dir / _FILE).read_text().strip()
    except FileNotFoundError:
        return ""


def keep(data_dir: Path, choice: Choice) -> None:
    """Remember it, readable by the owner alone, since a URL may have a password in it."""
    if choice.base_url == "":
        return
    descriptor = os.open(data_dir / _FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(SANDBOX if choice.base_url is None else choice.base_url)


def shown(url: str) -> str:
    """A URL without the password that may be in it."""
    return re.sub(r"//.*@", "//(not shown)@", url)
