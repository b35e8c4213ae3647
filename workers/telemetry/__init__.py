"""What Paceline tells its operators about itself.

metrics     every counter, histogram and gauge, with its labels
counts      where a process keeps what it counted: in memory, or in a directory that several share
exposition  the HTTP server that tells counts and health on METRICS_PORT
pulse       whether this process's main loop still turns over
logs        events as lines of JSON
traces      OpenTelemetry spans, if a collector is configured
"""
