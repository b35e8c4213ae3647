"""Options that several commands have, and the types of their values."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from workers.channels.registry import platforms

_TTL = re.compile(r"(\d+)([smhd])")
_TTL_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".paceline"),
    show_default=True,
    help="Where a local Paceline keeps its servers' data, its secret and its logs.",
)
port_option = click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)


class Ttl(click.ParamType):
    name = "ttl"

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = _TTL.fullmatch(value)
        if not match or int(match[1]) == 0:
            self.fail(f"{value!r} is not a duration; write e.g. 30m, 12h or 7d", param, ctx)
        return timedelta(**{_TTL_UNITS[match[2]]: int(match[1])})


class TimeZone(click.ParamType):
    name = "zone"

    def convert(self, value: Any, param: Any, ctx: Any) -> ZoneInfo:
        if isinstance(value, ZoneInfo):
            return value
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            words = (
                "is not a time zone; write e.g. Europe/Berlin (or install tzdata, if this machine has no time zones)"
            )
            self.fail(f"{value!r} {words}", param, ctx)


class Platform(click.ParamType):
    """A platform that a channel kind serves. The kinds are looked for only when one is named."""

    name = "platform"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return click.Choice(platforms()).convert(value, param, ctx)
