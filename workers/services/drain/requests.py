"""The requests of one drain that are out. They run side by side on the process's event loop (`Senders`)."""

import asyncio
import queue
from dataclasses import dataclass

import structlog

from workers.channels.base import Channel, Sender
from workers.clock import monotonic_s
from workers.domain.decisions import may_send
from workers.domain.message import Claim
from workers.domain.outcome import Blame, Outcome, OutcomeKind
from workers.services.senders import Senders
from workers.telemetry import traces
from workers.telemetry.logs import logger

WIDTH = 256
"""Requests that one drain keeps out at once."""

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request. at_s: when that was known (monotonic s)."""

    claim: Claim
    outcome: Outcome
    at_s: float


class Requests:
    """Starts requests in slots that were reserved before, and collects their answers.

    reserved: slots that the next `start` may use. crowded: the process had fewer slots than were asked for.
    """

    def __init__(self, senders: Senders, channel: Channel, sender: Sender, timeout_s: float) -> None:
        self._senders, self._channel, self._sender, self._timeout_s = senders, channel, sender, timeout_s
        self._out = 0
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.reserved = 0
        self.crowded = False

    def __bool__(self) -> bool:
        """Whether requests are out."""
        return self._out > 0

    @property
    def room(self) -> int:
        """How many more slots this drain may reserve."""
        return WIDTH - self._out - self.reserved

    def reserve(self, want: int) -> int:
        """Reserve up to `want` slots until the next `start` or `release`. Returns how many there were."""
        self.reserved = self._senders.take(want, newcomer=not self._out)
        self.crowded = self.reserved < want
        return self.reserved

    def start(self, claims: list[Claim], start_by_s: float) -> None:
        """Start a request for each claim, and release the slots that are left. Each begins until `start_by_s`
        (monotonic s), or does not leave."""
        if claims:
            self._senders.start([self._send(claim, start_by_s) for claim in claims])
        self._out += len(claims)
        self.reserved -= len(claims)
        self.release()

    def release(self) -> None:
        """Release the reserved slots."""
        self._senders.release(self.reserved)
        self.reserved = 0

    def answers(self, patience_s: float, most: int) -> list[Answer]:
        """The answers that have come, at most `most`. Waits up to `patience_s` for the first one."""
        try:
            found = [self._answers.get(timeout=patience_s)]
        except queue.Empty:
            return []
        while len(found) < most and not self._answers.empty():
            found.append(self._answers.get())
        self._out -= len(found)
        return found

    async def _send(self, claim: Claim, start_by_s: float) -> None:
        """One request. Logs and traces meanwhile go under the message's ids. There is always an answer, whatever
        happens: the drain waits for it."""
        structlog.contextvars.bind_contextvars(**claim.ids)  # in a context of its own
        try:
            with traces.span("send", kind="CLIENT", parent=claim.traceparent, attributes=claim.ids) as span:
                outcome = await self._ask_channel(claim, start_by_s)
                span |= {"outcome": str(outcome.kind), "http.response.status_code": outcome.http_status}
        except asyncio.CancelledError:
            outcome = Outcome(OutcomeKind.UNKNOWN, error="the process ended before an answer came")
        except Exception as error:  # a channel does not raise; if one does, the drain must not wait for ever
            log.exception("send_broke")
            outcome = Outcome(OutcomeKind.UNKNOWN, Blame.UPSTREAM, error=type(error).__name__)
        self._answers.put(Answer(claim, outcome, monotonic_s()))

    async def _ask_channel(self, claim: Claim, start_by_s: float) -> Outcome:
        """Send it, unless that could deliver it a second time."""
        if not may_send(claim, self._channel.capabilities):
            words = "not sent again: an earlier attempt may have arrived, and no idempotency key protects it any more"
            return Outcome(OutcomeKind.UNKNOWN, left=False, withheld=True, error=words)
        return await self._channel.send(claim, self._sender, start_by_s=start_by_s, timeout_s=self._timeout_s)
