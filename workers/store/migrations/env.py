"""Alembic's entry: runs the migrations on the connection that `workers.store.migrations` hands over."""

from alembic import context

from workers.store.schema import Base

connection = context.config.attributes["connection"]
# One at a time, each of one table that others use: two locked by one transaction are soon a deadlock with those who use
# them in the other order.
context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
