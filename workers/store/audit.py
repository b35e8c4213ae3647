"""Who did what, when, from which request. Append-only: the table itself refuses to change a row.

An entry is written in the transaction of what it tells of, so that there is neither one without the other. Statements
that do so in a WITH of their own build on `entry`.
"""

from typing import Any

from psycopg.types.json import Jsonb
from sqlalchemy import select

from workers.domain.actor import Action, Actor
from workers.domain.filters import AuditFilter, Scope
from workers.store.schema import AuditEntry
from workers.store.session import Connection, Database, Row


def entry(action: Action, *, rows: str, message_id: str = "NULL", details: str = "NULL::jsonb") -> str:
    """SQL that notes an action for each of some rows, which have an `account_id`: for the WITH of a statement whose
    parameters include `by_params`."""
    return f"""
    INSERT INTO audit (subject, role, request_id, action, account_id, message_id, details)
    SELECT %(by_subject)s, %(by_role)s, %(by_request_id)s, '{action}', account_id, {message_id}, {details} FROM {rows}
    """


def by_params(by: Actor) -> dict[str, Any]:
    """The parameters of `entry`, and what a message keeps of the request that queued it."""
    return {
        "by_subject": by.subject,
        "by_role": by.role,
        "by_request_id": by.request_id,
        "by_traceparent": by.traceparent,
    }


_NOTE = """
INSERT INTO audit (subject, role, request_id, action, account_id, message_id, details)
VALUES (%(by_subject)s, %(by_role)s, %(by_request_id)s, %(action)s, %(account_id)s, %(message_id)s, %(details)s)
"""


def note(
    c: Connection, by: Actor, action: Action, account_id: str, *, message_id: str | None = None, **details: Any
) -> None:
    """Note an action, within the transaction that does it."""
    about = {"action": str(action), "account_id": account_id, "message_id": message_id}
    c.all(_NOTE, by_params(by) | about | {"details": Jsonb(details) if details else None})


def entries(db: Database, wanted: AuditFilter, scope: Scope, limit: int) -> list[Row]:
    """Latest first. scope: the accounts the caller may know of; None for all."""
    query = select(AuditEntry.__table__)
    if scope is not None:
        query = query.where(AuditEntry.account_id.in_(scope))
    for column, value in (
        (AuditEntry.subject, wanted.subject),
        (AuditEntry.action, wanted.action),
        (AuditEntry.account_id, wanted.account_id),
        (AuditEntry.message_id, wanted.message_id),
        (AuditEntry.request_id, wanted.request_id),
    ):
        if value is not None:
            query = query.where(column == value)
    if wanted.since is not None:
        query = query.where(AuditEntry.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(AuditEntry.at < wanted.until)
    if wanted.before_id is not None:
        query = query.where(AuditEntry.id < wanted.before_id)
    return db.select(query.order_by(AuditEntry.id.desc()).limit(limit))


_PRUNE = """
WITH old AS (
    SELECT id FROM (SELECT id, at FROM audit ORDER BY id LIMIT %(most)s) oldest
    WHERE at < now() - %(older_than_s)s * interval '1 second'
), allowed AS MATERIALIZED (SELECT set_config('paceline.prune_audit', 'on', true))
DELETE FROM audit USING old, allowed WHERE audit.id = old.id RETURNING audit.id
"""


def prune(db: Database, older_than_s: float, most: int) -> int:
    """Forget the oldest entries, a small batch at a time; the one thing that may delete any. Returns how many."""
    return len(db.all(_PRUNE, {"older_than_s": older_than_s, "most": most}))
