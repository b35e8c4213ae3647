"""What a check is made of: rules, each a small function that yields what is wrong with its subject, and how to mend it.

A rule that yields nothing is kept. `fail` is for what breaks a guarantee or stops the pipeline: `paceline check` then
exits with 1. `warn` is for what costs speed, honesty or sleep. `note` only tells.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from workers.domain.remarks import Level, Remark, fail, note

_S = TypeVar("_S")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    level: Level
    what: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.level:<4}  {self.what}{': ' if self.words else ''}{self.words}"


Rule = Callable[[_S], Iterator[Remark]]


class Rules(Generic[_S]):
    """The rules about one kind of subject, in the order in which they are written down."""

    def __init__(self, *, away: tuple[type[Exception], ...] = ()) -> None:
        """away: what a subject raises that is not there at all; then there is no point in the other rules."""
        self._away = away
        self._rules: list[tuple[str, Rule[_S]]] = []

    def rule(self, what: str) -> Callable[[Rule[_S]], Rule[_S]]:
        """Decorates a rule; `what` is what the report calls it."""

        def add(rule: Rule[_S]) -> Rule[_S]:
            self._rules.append((what, rule))
            return rule

        return add

    def judge(self, subject: _S) -> Iterator[Finding]:
        for what, rule in self._rules:
            try:
                remarks = list(rule(subject)) or [note("")]
            except self._away:
                raise
            except Exception as error:  # a right that is missing, a connection cut: the other rules go on
                remarks = [fail(f"could not be looked at ({type(error).__name__}: {error})")]
            yield from (Finding(remark.level, what, remark.words) for remark in remarks)
