"""PostgreSQL, the truth. Every transition is one named statement that says from which state it moves.

schema        the tables, as SQLAlchemy sees them
migrations    schema changes, run by Alembic
session       connections, and how errors of the database become ours
plans         how statements are written, so that a plan that is kept stays good

By phase of a message's life:

accept        a message comes in, or many at once
lines         one message per recipient at a time: electing heads, and lines that rest
waiting       what waits, and when it may go
claims        a drain takes messages, with an attempt on record for each
outcomes      what an attempt came to, and where the message goes from there
lookups       unknown outcomes: what the upstream's records prove
endings       a waiting message ends unsent: cancelled, expired
failures      dead letters, and what an admin does with them
amend         a waiting message is changed
batches       messages that were queued together
upkeep        what the reconciler does for all: claims of the dead, pruning, tallies

And beside the messages:

accounts      accounts and their limits and keys
closures      why an account sends nothing: paused, resting, cooling down
backlog       an account's waiting messages, as a new message finds them
budgets       which account draws on which budget; every use of a token
epochs        which Redis server gives out the tokens
audit         who did what
glance        whether anything is under way, in one small query
queries       what people ask: lists, counts, one message whole
"""
