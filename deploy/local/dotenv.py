"""Settings from a file .env, as `docker compose` reads it too, without its interpolation.

A line is `NAME=value`, with or without `export`, a comment, or blank. In single quotes a value stands as it is; in
double quotes a backslash escapes n, t, a quotation mark, $ and itself; without quotes it ends at a # after a space.
Whatever could mean two things is refused by file and line.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from workers.environment import BadSetting

_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_SINGLE = re.compile(r"'([^']*)'\s*(?:#.*)?")
_ESCAPES = {"n": "\n", "t": "\t", '"': '"', "$": "$", "\\": "\\"}
_MOST_BYTES = 1024 * 1024


def read(path: Path, wanted: Collection[str]) -> dict[str, str]:
    """The wanted variables of a file that have a value. Raises BadSetting."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSetting.of(f"{path}: is not UTF-8; save it as UTF-8") from None
    if len(text) > _MOST_BYTES:
        raise BadSetting.of(f"{path}: is longer than {_MOST_BYTES:,} bytes; is it the right file?")
    found = parse(text, str(path))
    return {name: value for name, value in found.items() if value and name in wanted}


def parse(text: str, name: str) -> dict[str, str]:
    """Every variable of a text; the last assignment counts. name: of the file, for errors. Raises BadSetting."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(bare)
        if not assignment:
            raise BadSetting.of(f"{name}:{number}: is not NAME=value; begin a comment with #")
        try:
            found[assignment[1]] = _value(assignment[2])
        except ValueError as error:
            raise BadSetting.of(f"{name}:{number}: {assignment[1]}: {error}") from None
    return found


def merged(environ: Mapping[str, str], file: Mapping[str, str]) -> dict[str, str]:
    """The environment with the file's values where it has none of its own; an empty value counts as none."""
    return {**file, **{name: value for name, value in environ.items() if value or name not in file}}


def _value(raw: str) -> str:
    """Raises ValueError, with the remedy and without the value, which may be a secret."""
    if raw.startswith("'"):
        if not (quoted := _SINGLE.fullmatch(raw)):
            raise ValueError("the single quotation mark must be closed on the same line, and nothing may follow it")
        return quoted[1]
    if raw.startswith('"'):
        if not (quoted := _DOUBLE.fullmatch(raw)):
            raise ValueError("the double quotation mark must be closed on the same line (write a line break as \\n)")
        _refuse_interpolation(re.sub(r"\\.", "", quoted[1]))
        return re.sub(r"\\(.)", _unescaped, quoted[1])
    value = re.split(r"(?:^|\s)#", raw, maxsplit=1)[0].strip()
    _refuse_interpolation(value)
    if "'" in value or '"' in value or "\\" in value:
        raise ValueError("put a value with quotation marks or backslashes in single quotes as a whole")
    return value


def _unescaped(match: re.Match[str]) -> str:
    if match[1] not in _ESCAPES:
        raise ValueError(f"\\{match[1]} means nothing here; write \\\\ for a backslash, or use single quotes")
    return _ESCAPES[match[1]]


def _refuse_interpolation(text: str) -> None:
    if re.search(r"\$[A-Za-z_{(]", text) or "`" in text:
        raise ValueError("$NAME is not replaced here; write the value, or put it in single quotes if it has a $")
