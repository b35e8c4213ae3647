"""One HTTP/1.1 answer, as it comes in. httptools reads it; what counts as an answer is said here."""

import zlib
from typing import Any

import httptools

from workers.channels.http.exchange import Answer, NoAnswer

MAX_HEAD = 64 * 1024
"""Bytes before the body of an answer, interim answers included."""


class Incoming:
    """Feed it what comes in, until it is `whole`. Interim answers (1xx) are passed over.

    begun: the head is there. reusable: the connection may serve another request, as far as the answer says.
    NoAnswer is raised in our own words: the parser's may quote the answer.
    """

    __slots__ = ("_body", "_head_size", "_headers", "_max_body", "_parser", "begun", "reusable", "status", "whole")

    def __init__(self, max_body: int) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self._max_body = max_body
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._head_size = 0
        self.status = 0
        self.begun = self.whole = self.reusable = False

    def feed(self, data: bytes) -> None:
        """Raises NoAnswer if it cannot be one any more."""
        if not self.begun:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except Exception as error:
            self.reusable = False
            if not self.whole:
                raise NoAnswer(f"unreadable: {type(error).__name__}") from error
        if len(self._body) > self._max_body:
            raise NoAnswer("the answer is too long")
        if not self.begun and self._head_size > MAX_HEAD:
            raise NoAnswer("the head of the answer is too long")

    def end(self) -> None:
        """Nothing more will come. Raises NoAnswer, unless that is what ends this answer (RFC 9112 §6.3)."""
        if not self.begun:
            raise NoAnswer("cut off before an answer")
        if "Content-Length" in self._headers or "Transfer-Encoding" in self._headers:
            raise NoAnswer("cut off in the middle of the answer")
        self.whole = True

    def answer(self) -> Answer:
        """To be asked once. Raises NoAnswer if its body cannot be unpacked, or is too long then."""
        self._parser = None  # each knows the other: without this it would take the garbage collector to part them
        return Answer(self.status, self._headers, self._unpacked())

    def _unpacked(self) -> bytes:
        """Its body. We ask for no encoding, which not everybody heeds."""
        if self._headers.get("Content-Encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
            return bytes(self._body)
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as it says itself
        try:
            body = unpacking.decompress(self._body, self._max_body + 1)
        except zlib.error as error:
            raise NoAnswer("the answer cannot be unpacked") from error
        if len(body) > self._max_body:
            raise NoAnswer("the answer is too long")
        if not unpacking.eof:
            raise NoAnswer("cut off in the middle of the answer")
        return body

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.whole:
            raise NoAnswer("another one, that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.begun:  # a trailer
            return
        key, text = name.decode("latin-1").title(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.begun = self.status >= 200
        if not self.begun:
            self._headers = {}

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        if self.begun:
            self.whole, self.reusable = True, self._parser.should_keep_alive()
