"""The statements of the version whose schema ends with 0001, as it sends them: what must go on working beside and after
every later migration, until a release says that this version may not serve any more.
"""

ACCEPT = """
WITH key AS (
    INSERT INTO idempotency_keys (subject, key, fingerprint, message_id)
    SELECT %(subject)s, %(key)s::text, %(fingerprint)s, %(id)s WHERE %(key)s::text IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING 1
), head AS (
    SELECT 1 FROM messages
    WHERE account_id = %(account_id)s AND recipient_id = %(recipient_id)s AND priority = %(priority)s::smallint
      AND state IN ('queued', 'sending', 'verifying')
    FOR SHARE
)
INSERT INTO messages (id, account_id, recipient_id, priority, content, media_ids, metadata, batch_id, send_at,
                      expires_at, estimated_at, due_at, state)
SELECT %(id)s, %(account_id)s, %(recipient_id)s, %(priority)s::smallint, %(content)s, %(media_ids)s::text[],
       %(metadata)s::jsonb, %(batch_id)s, %(send_at)s, %(expires_at)s, %(estimated_at)s,
       coalesce(greatest(%(send_at)s::timestamptz, now()), now()),
       CASE WHEN %(send_at)s::timestamptz > now() THEN 'scheduled'
            WHEN EXISTS (SELECT FROM head) THEN 'held'
            ELSE 'queued' END
WHERE %(key)s::text IS NULL OR EXISTS (SELECT FROM key)
RETURNING id, state, queued_at
"""

CLAIM_NEXT = """
WITH next AS (
    SELECT m.id, row_number() OVER () AS n
    FROM accounts a
    CROSS JOIN generate_series(21, 2, -1) AS step
    CROSS JOIN LATERAL (
        SELECT id FROM messages
        WHERE account_id = a.id AND priority = step / 2 AND redriven = (mod(step, 2) = 0) AND state = 'queued'
          AND due_at <= statement_timestamp()
          AND (expires_at IS NULL OR expires_at > statement_timestamp())
        ORDER BY due_at, seq LIMIT %(want)s FOR UPDATE SKIP LOCKED
    ) m
    WHERE a.id = %(account_id)s AND (a.paused_at IS NULL OR a.paused_until <= statement_timestamp())
    LIMIT %(want)s
), claimed AS (
    UPDATE messages m SET state = 'sending', attempts = m.attempts + 1, tries = m.tries + 1
    FROM next WHERE m.id = next.id AND m.state = 'queued'
    RETURNING m.id, m.account_id, m.recipient_id, m.priority, m.content, m.media_ids, m.attempts, m.tries, m.due_at,
              (%(tokens)s::text[])[next.n] AS token
), intent AS (
    INSERT INTO attempts (message_id, account_id, number, token, worker, deadline_at)
    SELECT id, account_id, attempts, token, %(worker)s, clock_timestamp() + %(lease_s)s * interval '1 second'
    FROM claimed
)
SELECT *, extract(epoch FROM statement_timestamp() - due_at)::float8 AS due_s,
    (SELECT sum(n)::int FROM tallies WHERE account_id = %(account_id)s AND state = 'queued') AS queued
FROM claimed
"""

MARK_SENT = """
WITH o AS (
    SELECT * FROM unnest(%(ids)s::text[], %(attempts)s::int[], %(upstream_ids)s::text[], %(statuses)s::int[],
                         %(latencies)s::int[], %(tokens)s::text[])
        AS o (message_id, attempt, upstream_id, http_status, latency_ms, token)
), closed AS (
    UPDATE attempts a SET outcome = 'accepted', ended_at = clock_timestamp(), http_status = o.http_status,
        latency_ms = o.latency_ms
    FROM o
    WHERE a.message_id = o.message_id AND a.number = o.attempt AND a.token = o.token AND a.outcome IS NULL
    RETURNING a.message_id, a.number, o.upstream_id
)
UPDATE messages m SET state = 'sent', sent_at = clock_timestamp(), ended_at = clock_timestamp(),
    upstream_id = closed.upstream_id
FROM closed WHERE m.id = closed.message_id AND m.state = 'sending' AND m.attempts = closed.number
RETURNING m.id, extract(epoch FROM m.sent_at - m.queued_at)::float8 AS waited_s,
    extract(epoch FROM m.sent_at - m.estimated_at)::float8 AS estimate_error_s
"""

PUT = """
INSERT INTO accounts AS a (id, channel, limits, display_name, api_key)
VALUES (%(id)s, %(channel)s, %(limits)s, %(display_name)s, %(api_key)s)
ON CONFLICT (id) DO UPDATE SET channel = EXCLUDED.channel, limits = EXCLUDED.limits,
    display_name = EXCLUDED.display_name, api_key = coalesce(EXCLUDED.api_key, a.api_key)
RETURNING (xmax = 0) AS created
"""
