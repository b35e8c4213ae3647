"""HTTP in and out: authentication, validation, shapes. SQL, Celery and Redis commands are the services' affair.

app         the application, wired from its parts
endpoint    the decorator that declares a route
auth        who calls, what they may do, which accounts they may know of
limiting    a caller's own rate limits
body        a request's body as JSON, within bounds
schemas     the shapes of requests and answers
errors      every error as JSON
messaging   the routes of a channel's messages
accounts    the routes of accounts
kinds       what an account may have of its kind, by the schemas of the kind
operations  health, metrics, documentation
openapi     the OpenAPI document, read off the routes
examples    an example of every field, for the documentation
"""
