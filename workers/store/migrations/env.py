"""Alembic's entry: runs the migrations on the connection that `workers.store.migrations` hands over."""

from alembic import context

from workers.store.schema import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
