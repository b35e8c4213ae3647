"""How Celery runs Paceline's tasks: plain data for `workers.engine.celery_app`. Settings give the URL of the broker.

A task is a wake-up ("look at this account"), never a message: one that is lost or comes twice costs a look, so nothing
here needs to be durable, acknowledged late, retried or answered.
"""

task_default_queue = "paceline"
task_ignore_result = True
task_serializer = "json"
accept_content = ["json"]
timezone = "UTC"

# A lost wake-up is repeated by the reconciler from PostgreSQL; a queue of stale ones would only be in the way.
task_acks_late = False
task_default_delivery_mode = "transient"
worker_prefetch_multiplier = 1

# Threads: a drain waits for answers most of the time. More throughput comes from more worker processes.
worker_pool = "threads"
worker_concurrency = 32
worker_enable_remote_control = False
worker_send_task_events = False
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_consumer = "workers.engine.consumer:Consumer"
worker_cancel_long_running_tasks_on_connection_loss = (
    True  # of those acknowledged late: none; unset, Celery warns of it
)

broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_heartbeat = 10  # s, with RabbitMQ: a worker notices within two of them that the broker's machine is gone
broker_transport_options = {
    # of Redis
    "ack_emulation": False,  # what a worker has fetched is kept in its memory only: six commands fewer for each task
    "priority_steps": [0],
    "socket_keepalive": True,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "health_check_interval": 10,
    # of RabbitMQ, which reads nothing from publishers while it is out of memory or disk
    "write_timeout": 10,
}

beat_scheduler = "workers.engine.pacer:Pacer"
beat_enable_remote_control = False
