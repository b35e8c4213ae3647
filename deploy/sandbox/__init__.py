"""The sandbox upstream: a platform to send to, and the judge of how it was done.

Paceline promises never more than N in any rolling period, none lost and none sent twice. Those promises are
about what an upstream *sees*, so here is one: a real HTTP/1.1 server that speaks the `onlyfans` protocol
(contract, section 2), holds a strict rolling limit per API key by its own clock, keeps a ledger of everything
that arrived, and misbehaves on request. It shares no code with what it judges.

    message.py   what may be sent: the request body, validated
    faults.py    which misbehaviour a request meets
    chats.py     the history: what is kept of a text, and who wrote it
    ledger.py    the judgement and the record: pure, time is an argument
    server.py    HTTP, sockets, threads; `Sandbox` for tests and the demo, `serve` for a process of its own

What becomes of a POST /chats/send-message, in this order:

1. the upstream is `away` with a fault: that fault
2. no bearer token: 401; a body that is no message: 400
3. the window of that key is full: 429 with Retry-After (`enforce=False`: let through, marked `overshoot`)
4. `idempotent`, and the first use of the Idempotency-Key still runs (the fault `in_use`): 409
5. a fault applies (below); a request stopped before this has used up none
6. `idempotent`, and the Idempotency-Key is known: the first answer again with `Idempotent-Replayed: true`;
   if the key was another message's, 409, for to swallow that message would hide a loss
   (`late` is decided at the end of its wait, not at the beginning: from then on it counts)
7. accepted: it has an id, is in its chat's history, and counts in the window
   (`in_use` counts from its arrival, and is in the history at the end of its wait)

With `keeps_refusals` a refusal by a fault is a first answer, too, and is replayed: a 4xx other than 408, 409, 425 and
429, which say to try again.

The window is half open, (t - period, t], in whole nanoseconds: exactly one period later is allowed again.
Accepted and replayed requests count in it, for a replay is a request that arrived. Those answered 429, 4xx or
5xx, or cut before they were accepted, do not. Only send-message is limited.

Recipients for trying things out by hand, known by how their chat_id begins ("first" is per message: by its
Idempotency-Key, else its text):

    bounce-…     400 "This user does not accept messages", always
    flaky-…      503 to the first two requests, then accepted
    cut-…        accepted, but the first request's connection is closed without an answer
    slow-…       accepted, and answered after 2 s, always
    throttle-…   429 to the first request, then accepted
    jammed-…     429 with Retry-After: 1, always: this chat's own limit, which no pause mends
    blocked-…    403 "This user has blocked you", always
    gone-…       404 "This chat does not exist", always

What GET /chats/<chat_id>/messages shows:

    keeps          "as sent", or what the platform does to a text it keeps: any of nfc, lf, trimmed, html, joined by
                   commas. The answer to the request and the ledger have the text as it was sent.
    authors        whether each message has `"from_user": {"id": …}`: the id of GET /me, or the chat's for the fan
    history        off: 404
    history_hangs  chats, and API keys, whose history is asked for and never answered

`fan_says` and `typed_by_hand` add messages that no request brought.

Faults by script and by chance, and the evidence (the fields: `Fault`; which one wins: `Faults`):

    POST   /_sandbox/faults    {"kind": "cut", "chat_id": "fan-7", "times": 1}; "times": null is always
    GET    /_sandbox/faults    the rules, with the uses they have left, and the rates
    DELETE /_sandbox/faults    forget the rules
    PUT    /_sandbox/rates     {"rates": {"status:503": 0.05, "hang:30": 0.01}, "seed": 7}; no rates: no more
    POST   /_sandbox/outage    {"for_s": 3}: cut everybody off, and refuse connections for so long; with the fields of a
                               fault besides, every request meets it: {"for_s": 3, "kind": "status", "retry_after_s": 5}
    GET    /_sandbox/switches  all that may be switched while it runs, by name: `server.SWITCHES`
    PATCH  /_sandbox/switches  {"keeps": "trimmed,html", "authors": false}
    POST   /_sandbox/chats/<chat_id>/messages  {"key": …, "text": …, "by": "fan"}: the fan writes; "user": typed by hand
    GET    /_sandbox/ledger    ?since=n: the entries after the nth
    DELETE /_sandbox/ledger    forget entries, history, windows, Idempotency-Keys, and who was flaky
    GET    /_sandbox/summary   the counts, and the fullest window there was
    GET    /_sandbox/health

The control paths ask for no token, and the ledger shows API keys as they were given: this is a tool for
loopback and made-up keys. Nothing is ever logged.
"""

from deploy.sandbox.chats import Chats
from deploy.sandbox.faults import Fault, Faults
from deploy.sandbox.ledger import Answer, Arrival, Entry, Ledger, Limit, parse_limits, summarize
from deploy.sandbox.message import Message
from deploy.sandbox.server import Sandbox, serve

__all__ = [
    "Answer",
    "Arrival",
    "Chats",
    "Entry",
    "Fault",
    "Faults",
    "Ledger",
    "Limit",
    "Message",
    "Sandbox",
    "parse_limits",
    "serve",
    "summarize",
]
