"""`paceline demo`: a mixed queue against the sandbox upstream, watched live, and a summary that both sides agree on."""

import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.client import Client
from deploy.stack import Stack

ROWS = 40
_STYLE = {"sent": "green", "failed": "red", "sending": "yellow", "queued": "cyan", "expired": "dim", "cancelled": "dim"}
_OVER = {"sent", "failed", "cancelled", "expired"}


def run(stack: Stack, messages: int, stop: threading.Event) -> bool:
    """Queue, watch until all is over (or `stop`), sum up. Returns whether Paceline and the upstream agree."""
    console = Console()
    observer = _Observer(stack)
    console.print(f"[bold]Paceline[/] at {stack.url} · sandbox upstream at {stack.sandbox_url}\n")
    ids = [observer.send(message) for message in mixed_queue(messages)]
    with Live(console=console, refresh_per_second=8, transient=not console.is_terminal) as live:
        while not stop.is_set():
            found = observer.messages(len(ids))
            live.update(_screen(found, observer.status()))
            if all(message["status"] in _OVER for message in found):
                break
            stop.wait(0.25)
    return _sum_up(console, observer)


def mixed_queue(messages: int) -> list[dict[str, Any]]:
    """Plain ones; among them urgent ones, one bounced, one that fails twice, one throttled, one cut off, one for later,
    one too late, and three to the same recipient."""
    now = datetime.now(UTC)
    soon = (now + timedelta(seconds=4)).isoformat()
    special: list[dict[str, Any]] = [
        {"recipientId": "bounce-anna", "content": "Not wanted upstream"},
        {"recipientId": "flaky-ben", "content": "Answered 503 twice"},
        {"recipientId": "throttle-cleo", "content": "Answered 429 once"},
        {"recipientId": "cut-dora", "content": "Taken, and the line cut"},
        {"recipientId": "fan-later", "content": "In 15 s", "sendAt": (now + timedelta(seconds=15)).isoformat()},
        {"recipientId": "fan-late", "content": "Too late", "expiresAt": soon, "priority": 1},
        {"recipientId": "fan-urgent", "content": "First, please", "priority": 10},
        *({"recipientId": "fan-often", "content": f"Part {n}"} for n in (1, 2, 3)),
    ]  # fmt: skip
    plain = [{"recipientId": f"fan-{n}", "content": f"Hello {n}"} for n in range(1, messages + 1)]
    queue = plain[:]
    for n, message in enumerate(special[:messages]):
        queue.insert(min(len(queue), 3 * n + 2), message)
    return queue[:messages] if messages < len(special) else queue[: max(messages, len(special))]


class _Observer:
    """Queues messages, and reads what the API and the sandbox say of them."""

    def __init__(self, stack: Stack) -> None:
        token = stack.admin_token("demo", timedelta(hours=1))
        assert token is not None, "a demo has a secret of its own"
        self._api = Client(f"{stack.url}/api/onlyfans/messaging", token, timeout_s=10)
        self._sandbox = Client(stack.sandbox_url, timeout_s=10)

    def send(self, message: dict[str, Any]) -> str:
        message_id: str = self._api.must("POST", "/send", message)["messageId"]
        return message_id

    def messages(self, most: int) -> list[dict[str, Any]]:
        found = self._api.must("GET", f"/messages?limit={min(most, 200)}")["messages"]
        whole = [m if m["status"] != "queued" else self._api.must("GET", f"/messages/{m['messageId']}") for m in found]
        return whole[::-1]

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self._api.must("GET", "/status")
        return status

    def upstream_summary(self) -> dict[str, Any]:
        """What the upstream's ledger says."""
        summary: dict[str, Any] = self._sandbox.must("GET", "/_sandbox/summary")
        return summary


def _screen(messages: list[dict[str, Any]], status: dict[str, Any]) -> Group:
    table = Table(box=None, pad_edge=False)
    for column in ("to", "says", "status", "attempts", "place", "goes in", "held back by"):
        table.add_column(column)
    waiting_first = sorted(messages, key=lambda m: (m["status"] in _OVER, m.get("position") or 0))
    for message in waiting_first[:ROWS]:
        table.add_row(
            message["recipientId"],
            message["content"],
            Text(message["status"], style=_STYLE[message["status"]]),
            str(message["attemptCount"] or ""),
            str(message.get("position") or ""),
            _time_to_go(message.get("estimatedSendTime")),
            message.get("blockedBy") or "",
        )
    account = status["accounts"][0]
    over = sum(message["status"] in _OVER for message in messages)
    free = account["tokensAvailable"] or 0
    line = Text.assemble(
        (f"{over} of {len(messages)} over", "bold"),
        f"   limit {status['processing']['rateLimit']}   tokens free {'●' * min(free, 60)} {free}",
        f"   next one back in {_time_to_go(account['nextTokenAt'])}" if not free else "",
    )
    return Group(line, ProgressBar(total=len(messages), completed=over, width=60, complete_style="green"), "", table)


def _time_to_go(at: str | None) -> str:
    if at is None:
        return ""
    return f"{max(0.0, datetime.fromisoformat(at).timestamp() - time.time()):.0f} s"


def _sum_up(console: Console, observer: _Observer) -> bool:
    ours = Counter(message["status"] for message in observer.messages(200))
    theirs = observer.upstream_summary()
    table = Table(title="\nWhat became of it", title_justify="left", box=None)
    table.add_column("")
    table.add_column("Paceline says", justify="right")
    table.add_column("the upstream's ledger says", justify="right")
    table.add_row("sent", str(ours["sent"]), str(theirs["accepted"]))
    for status in ("failed", "expired", "cancelled", "queued", "sending"):
        if ours[status]:
            table.add_row(status, str(ours[status]), "")
    table.add_row("sent twice", "", str(theirs["duplicates"]))
    table.add_row("beyond the limit", "", str(theirs["overshoot"]))
    console.print(table)
    agreed = ours["sent"] == theirs["accepted"] and not theirs["duplicates"] and not theirs["overshoot"]
    console.print("[green]They agree.[/]" if agreed else "[red]They do not agree.[/]")
    return agreed
