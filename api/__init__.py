"""HTTP in and out: authentication, validation, shapes. SQL, Celery and Redis commands are the services' affair."""
