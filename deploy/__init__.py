"""Composes all the others: the command line, the servers of a machine that has none, the sandbox upstream, and what
puts Paceline into production (Docker)."""
