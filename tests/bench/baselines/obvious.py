"""The obvious design: a row per message, a Celery task per message, `requests`. Default settings throughout."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime

import requests
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.bench.baselines.work import REDIS_URL, UPSTREAM_URL, Mail, asked, told

app = Celery("obvious", broker=REDIS_URL.replace("unix://", "redis+socket://").replace("?db=", "?virtual_host="))
engine = create_engine(os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://"))


class Base(DeclarativeBase):
    pass


class Message(Base):
    __tablename__ = "obvious_messages"

    id: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(index=True)
    recipient: Mapped[str]
    text: Mapped[str]
    status: Mapped[str] = mapped_column(default="queued", index=True)
    upstream_id: Mapped[str | None]
    sent_at: Mapped[datetime | None]


@app.task(autoretry_for=(requests.RequestException,), retry_backoff=True, max_retries=5)
def send(message_id: str) -> None:
    with Session(engine) as session:
        message = session.get_one(Message, message_id)
        mail = Mail(message.id, message.account, message.recipient, message.text)
        message.upstream_id = told(requests.post(f"{UPSTREAM_URL}/chats/send-message", **asked(mail), timeout=10))
        message.status = "sent"
        message.sent_at = datetime.now(UTC).replace(tzinfo=None)
        session.commit()


def enqueue(mails: Iterable[Mail]) -> None:
    Base.metadata.create_all(engine)
    mails = list(mails)
    with Session(engine) as session:
        session.add_all(
            Message(id=mail.message_id, account=mail.account, recipient=mail.recipient, text=mail.text)
            for mail in mails
        )
        session.commit()
    for mail in mails:
        send.delay(mail.message_id)
