"""What an account may have of its kind: its channel, settings and credentials, as the kind's own schemas have them."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from marshmallow import Schema, ValidationError, fields

from workers.channels.base import Kind
from workers.channels.registry import kinds, serves


class Channel(fields.String):
    """The name of a kind."""

    @property
    def names(self) -> list[str]:
        return list(kinds())

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        name = super()._deserialize(value, attr, data, **kwargs)
        if name not in self.names:
            raise ValidationError(f"Must be one of: {', '.join(self.names)}.")
        return name


class OfKind(fields.Field[dict[str, Any]]):
    """An object that a schema of the account's kind describes. It is checked once the kind is known (`checked`)."""

    def __init__(self, part: str, *, patch: bool = False, **kwargs: Any) -> None:
        """part: `credentials` or `account_settings`, as `Kind` has them. patch: a JSON merge patch of it."""
        self.part, self.patch = part, patch
        super().__init__(**kwargs)

    @property
    def schemas(self) -> list[type[Schema]]:
        """One for each kind."""
        declared = [getattr(kind, self.part) for kind in kinds().values()]
        return [_patch_of(schema) for schema in declared] if self.patch else declared

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ValidationError("Not a valid mapping type.")
        return value


def kind_of(platform: str, channel: str | None) -> Kind:
    """The kind of a new account: the one that is named, or else the platform's own. Raises ValidationError."""
    here = {name: kind for name, kind in kinds().items() if serves(name, platform)}
    if channel is None and platform not in here and len(here) != 1:
        raise ValidationError({"channel": [f"Name one of: {', '.join(here)}."]})
    chosen = channel or (platform if platform in here else next(iter(here)))
    if chosen not in here:
        raise ValidationError({"channel": [f"Must be one of: {', '.join(here)}."]})
    return here[chosen]


def checked(kind: Kind, body: Mapping[str, Any], *, patch: bool = False) -> dict[str, Any]:
    """`settings` and `credentials` of a body, as the kind takes them. Raises ValidationError, by field.

    patch: settings are a JSON merge patch, in which null takes one away.
    """
    wanted = {"credentials": kind.credentials, "settings": kind.account_settings}
    if patch:
        wanted["settings"] = _patch_of(kind.account_settings)
    found: dict[str, Any] = {}
    wrong: dict[str, Any] = {}
    for name, schema in wanted.items():
        if body.get(name) is not None:
            try:
                found[name] = schema().dump(schema().load(body[name]))
            except ValidationError as error:
                wrong[name] = error.messages
        elif name in body:
            found[name] = None
    if wrong:
        raise ValidationError(wrong)
    return found


@cache
def _patch_of(schema: type[Schema]) -> type[Schema]:
    """The schema of a JSON merge patch: every field may be left out, or null."""
    loose: dict[str, Any] = {}
    for name, declared in schema._declared_fields.items():
        loose[name] = deepcopy(declared)
        loose[name].required, loose[name].allow_none = False, True
    return type(f"{schema.__name__}Patch", (schema,), loose)
