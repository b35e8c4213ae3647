"""The use cases. Each composes the store, the tokens, the wake-ups and the channels; none of them knows HTTP or Celery.

submit       accept a message and say when it will go
dispatch     drain an account: borrow, claim, commit, send, record
settle       write down what an attempt came to
epochs       one Redis server at a time gives out tokens
budgets      which budget an account draws on: that of its credential
accounts     what an admin does with accounts
recovery     rescue, rebuild, expire, verify: what puts things right after a fault
failures     dead letters
queries      what people ask
"""
