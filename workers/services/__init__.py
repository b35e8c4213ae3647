"""The use cases. Each composes the store, the tokens, the wake-ups and the channels; none of them knows HTTP or Celery.

submit, bulk   accept a message, or a list of them, and say when each will go
estimate       when a message will go, and what blocks it
dispatch       drain an account: borrow, claim, commit, send, record
drain/         what a drain holds: its tokens, its requests, its slot, its probe
senders        the event loop that requests are made on
settle         write down what an attempt came to
epochs         one Redis server at a time gives out tokens
recovery       rescue, rebuild, expire, verify: what puts things right after a fault
publish        what follows from an event: counters, logs, wake-ups
cancel, amend  take back or change what waits
failures       dead letters
accounts       limits, credentials, pauses
budgets        which accounts share a budget
reader         what people ask
"""
