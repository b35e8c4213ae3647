"""Fields of the API's schemas: also those with which a channel kind declares its credentials and account settings."""

from typing import Any, ClassVar

from marshmallow import RAISE, Schema, ValidationError, fields, validate

HEADER_TEXT = r"^[!-~]+$"
HEADER_WORDS = "Must be letters, digits and punctuation of ASCII alone, without spaces or line breaks"


class Text(fields.String):
    """A string that PostgreSQL and UTF-8 can hold."""

    pattern = r"^[^\x00]*$"
    """For the document, where no stricter one is given."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        check_text(text)
        return text


class Whole(fields.Integer):
    """A JSON integer, 5 or 5.0, which is the same number; neither "5" nor true."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if type(value) not in (int, float) or value % 1:
            raise self.make_error("invalid", input=value)
        return super()._deserialize(value, attr, data, **kwargs)


class Flag(fields.Boolean):
    """A JSON boolean: neither "yes" nor 1."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if type(value) is not bool:
            raise self.make_error("invalid", input=value)
        return value


def check_text(text: str) -> None:
    """Raises ValidationError for text that PostgreSQL or UTF-8 cannot hold."""
    if "\0" in text:
        raise ValidationError("Must not contain NUL characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValidationError("Must not contain half of a surrogate pair.") from None


class Matches(validate.Regexp):
    """The whole text, to its very end: Python's `$` also stands before a last newline, that of JSON Schema does not."""

    def __call__(self, value: Any) -> Any:
        if not self.regex.fullmatch(value):
            raise ValidationError(self._format_error(value))
        return value


class Strict(Schema):
    """rules: what JSON Schema can say, beyond its fields, of what this takes. example: a body of this kind, for people
    to begin with."""

    class Meta:
        unknown = RAISE

    rules: ClassVar[dict[str, Any]] = {}
    example: ClassVar[dict[str, Any]] = {}
