"""PostgreSQL, the truth. Every transition is one named statement that says from which state it moves.

schema        the tables, as SQLAlchemy sees them; migrations/ makes them
session       connections, and how errors of the database become ours
messages      a message on its way: accept, claim, record, rescue
failures      dead letters and what an admin does with them
accounts      accounts and their limits, pauses and cooldowns
epochs        which Redis server gives out the tokens
budgets       which account draws on which budget, and which budgets a credential had before
queries       what people ask: lists, counts, one message whole
"""
