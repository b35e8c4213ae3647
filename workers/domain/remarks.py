"""What a check has to say of one thing: `paceline check` prints it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Remark:
    """What a rule has to say: words that name the trouble and its remedy."""

    level: Level
    words: str


def fail(words: str) -> Remark:
    """It breaks a guarantee or stops the pipeline."""
    return Remark(Level.FAIL, words)


def warn(words: str) -> Remark:
    """It costs speed, honesty or sleep."""
    return Remark(Level.WARN, words)


def note(words: str) -> Remark:
    """It is in order."""
    return Remark(Level.OK, words)
