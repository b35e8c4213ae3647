"""Composes all the others: the command line, the servers of a machine that has none, the sandbox upstream, and what
puts Paceline into production (Docker).

cli         the `paceline` command
check       `paceline check`: whether everything is in place
send        `paceline send --file`
demo        `paceline demo`
stack       the whole pipeline on one machine
local       what `paceline up` keeps and tells beside its stack
servers     a PostgreSQL and a Valkey for a machine that has none
lifeline    ends a process together with its stack
serve       the API in production
sandbox     an upstream to send to, and the judge of how it was done
faults      the fault suite
monitoring  manifests for Kubernetes from the files of Prometheus and Grafana
client      the HTTP client of our own commands
"""
