"""Rules of `paceline check`. A rule is a small function that yields each fault of its subject with the remedy.

A rule that yields nothing has passed. `fail` means that a guarantee is broken or the pipeline is stopped; `paceline
check` then exits with 1. `warn` means slower, less accurate, or at a risk. `note` only informs.
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
                remarks = [fail(f"could not be checked ({type(error).__name__}: {error})")]
            yield from (Finding(remark.level, what, remark.words) for remark in remarks)
