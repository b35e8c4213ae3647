"""The channel kinds that this installation has: those of Paceline, and those of other packages.

Another package adds a kind with an entry point of the group `paceline.channels`, which names the kind and its `Kind`:

    [project.entry-points."paceline.channels"]
    telex = "paceline_telex:KIND"
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from marshmallow import Schema

from workers.channels.base import Channel, Kind
from workers.domain.errors import UnknownKind
from workers.environment import BadSetting

GROUP = "paceline.channels"
OURS = (EntryPoint("onlyfans", "workers.channels.onlyfans:KIND", GROUP),)
"""Named here and not in pyproject.toml, so that a checkout that was updated needs no new installation."""
EVERY_PLATFORM = "any"
"""Stands for all platforms in a path."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


class BadKind(BadSetting):
    """A channel kind cannot be used. The message names its entry point and the remedy."""


@cache
def kinds() -> Mapping[str, Kind]:
    """Every kind by its name. Raises BadKind."""
    return load([*OURS, *entry_points(group=GROUP)])


def platforms() -> list[str]:
    """What may stand for `<channel>` in a path."""
    return [*dict.fromkeys(kind.platform for kind in kinds().values()), EVERY_PLATFORM]


def serves(channel: str, platform: str) -> bool:
    """Whether accounts of this kind are found under this platform."""
    return platform == EVERY_PLATFORM or (channel in kinds() and kinds()[channel].platform == platform)


class Channels(dict[str, Channel]):
    """The channel of each kind that is installed here. Raises UnknownKind for any other: another process may have it,
    as while a package is being rolled out, so the account's messages wait."""

    def __missing__(self, kind: str) -> Channel:
        raise UnknownKind(kind)


def load(found: Iterable[EntryPoint]) -> Mapping[str, Kind]:
    """The kinds behind these entry points, by name. Raises BadKind."""
    loaded: dict[str, Kind] = {}
    origins: dict[str, EntryPoint] = {}
    variables: dict[str, str] = {}
    for point in found:
        kind = _load(point)
        if kind.name in loaded:
            raise _bad(point, f"{_where(origins[kind.name])} declares this name already; uninstall one of the two")
        for variable in _variables(point, kind):
            if variable in variables:
                raise _bad(point, f"the kind {variables[variable]!r} has the setting {variable} already; rename it")
            variables[variable] = kind.name
        loaded[kind.name], origins[kind.name] = kind, point
    return loaded


def _load(point: EntryPoint) -> Kind:
    try:
        kind = point.load()
    except Exception as error:
        words = f"cannot be imported ({type(error).__name__}: {error}); mend or uninstall the package"
        raise _bad(point, words) from error
    if not isinstance(kind, Kind):
        raise _bad(point, f"is a {type(kind).__name__}; it must be a workers.channels.base.Kind")
    if kind.name != point.name:
        raise _bad(point, f"declares the name {kind.name!r}; the entry point must have the same name")
    if (
        not _NAME.fullmatch(kind.name)
        or not _NAME.fullmatch(kind.platform)
        or EVERY_PLATFORM in (kind.name, kind.platform)
    ):
        raise _bad(point, "needs a name and a platform of 1 to 32 small letters, digits and hyphens, other than any")
    for what, schema in (("credentials", kind.credentials), ("account_settings", kind.account_settings)):
        if not (isinstance(schema, type) and issubclass(schema, Schema)):
            raise _bad(point, f"{what} must be a class of marshmallow's Schema")
    return kind


def _variables(point: EntryPoint, kind: Kind) -> list[str]:
    """The environment variables of its settings. Raises BadKind for settings that are not declared as such."""
    if not is_dataclass(kind.settings):
        raise _bad(point, "settings must be a dataclass with fields made by workers.environment.variable")
    undeclared = [field.name for field in fields(kind.settings) if "variable" not in field.metadata]
    if undeclared:
        raise _bad(point, f"its setting {undeclared[0]!r} must be made by workers.environment.variable")
    return [field.metadata["variable"] for field in fields(kind.settings)]


def _bad(point: EntryPoint, words: str) -> BadKind:
    return BadKind.of(f"The channel kind {point.name!r} ({_where(point)}): {words}")


def _where(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"{point.value}{package}"
