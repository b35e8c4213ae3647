"""`paceline send --file`: reads a file of messages, checks every row, and queues them in lists.

    source.py     bytes as text, piece by piece
    table.py      CSV as spreadsheets and CRMs export it
    documents.py  NDJSON and a JSON array
    fields.py     checks of single fields: ids that a spreadsheet has changed, times without an offset
    files.py      `read`: every message of a file, checked, or every error with its line
    words.py      errors in words for people
    sender.py     `Sender`: the lists, their Idempotency-Keys, and what the API answers

Memory stays bounded whatever the size of the file: messages that have been checked wait in a temporary file.
"""

from deploy.send.files import Messages, Row, read
from deploy.send.sender import SUBJECT, Sender, Sent, chunks, run, token_of
from deploy.send.words import SendFailed

__all__ = ["SUBJECT", "Messages", "Row", "SendFailed", "Sender", "Sent", "chunks", "read", "run", "token_of"]
