"""How settings are read from environment variables: parsers, and the one error that stops a process.

`workers.settings` declares its settings with these, and so does each channel kind.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Self
from urllib.parse import urlsplit


class BadSetting(ValueError):
    """A setting makes no sense. The message names the variable, the value and the remedy."""

    def __init__(self, variable: str, value: object, remedy: str) -> None:
        super().__init__(f"{variable}={value!r}: {remedy}")
        self.variable = variable

    @classmethod
    def of(cls, words: str) -> Self:
        """One that is not about a single variable's value."""
        error = cls("", "", "")
        error.args = (words,)
        return error


def text(raw: str) -> str:
    """Any text."""
    return raw


def number(low: float, high: float, unit: str) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`."""

    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            raise ValueError(f"must be a number of {unit} from {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"must be a number of {unit} from {low:g} to {high:g}")
        return value

    return parse


def whole(low: int, high: int, unit: str) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(raw: str) -> int:
        if not raw.strip().isascii() or not raw.strip().isdigit() or not low <= int(raw) <= high:
            raise ValueError(f"must be a whole number of {unit} from {low} to {high}")
        return int(raw)

    return parse


def port(raw: str) -> int:
    """A TCP port."""
    if not raw.isascii() or not raw.isdigit() or not 1 <= int(raw) <= 65535:
        raise ValueError("must be a port, from 1 to 65535")
    return int(raw)


def flag(raw: str) -> bool:
    """A yes or no: `1` or `0`."""
    if raw.lower() in ("1", "true", "yes", "on"):
        return True
    if raw.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def url(*schemes: str, example: str) -> Callable[[str], str]:
    """A parser of URLs with one of these schemes."""

    def parse(raw: str) -> str:
        if urlsplit(raw).scheme not in schemes:
            raise ValueError(f"must be a URL beginning with {' or '.join(f'{s}://' for s in schemes)}, e.g. {example}")
        return raw

    return parse


def header(raw: str) -> str:
    """A key that an HTTP header can hold."""
    try:
        sendable = not re.search(r"[\x00-\x1f\x7f]", raw) and bool(raw.encode("latin-1"))
    except UnicodeEncodeError:
        sendable = False
    if not sendable:
        raise ValueError(
            "must be the upstream's key, which a header can hold: no line end, no control character, Latin letters"
        )
    return raw


def choice(*choices: str) -> Callable[[str], str]:
    """A parser that takes one of these words."""

    def parse(raw: str) -> str:
        if raw not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return raw

    return parse


def variable(
    name: str,
    parse: Callable[[str], Any],
    default: str | None = None,
    *,
    any_case: bool = False,
    required: str | None = None,
) -> Any:
    """A field read from an environment variable; the default is written as it would be there.

    any_case: the variable may be written in lower case instead, as other programs have it. required: the remedy if the
    variable is not set and has no default.
    """
    names = (name, name.lower()) if any_case else (name,)
    about = {"variable": name, "names": names, "parse": parse, "default": default, "required": required}
    return field(repr=False, metadata=about)


def read(about: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """The value of a field made by `variable`. Raises BadSetting."""
    name, default = about["variable"], about["default"]
    raw = next(filter(None, map(environ.get, about["names"])), default)
    if raw is None:
        if about["required"]:
            raise BadSetting(name, "", about["required"])
        return None
    try:
        return about["parse"](raw) if raw else raw
    except (ValueError, OSError) as error:
        raise BadSetting(name, _shown(name, raw), str(error)) from error


def _shown(name: str, raw: str) -> str:
    """The value as it may be shown: no secret, and no password inside a URL."""
    if any(word in name for word in ("SECRET", "KEY", "TOKEN")):
        return "(not shown)"
    return re.sub(r"^(\w+://)?.*@", r"\1(not shown)@", raw, flags=re.DOTALL)
