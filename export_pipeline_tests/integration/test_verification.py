"""The additional verification, with a real mail server and real tables."""

from __future__ import annotations

import email
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from typing import Any

import psycopg
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session
from pydantic import SecretStr

from export_pipeline import wiring
from export_pipeline.errors import (
    ConfigurationError,
    InvalidRequest,
    MailUnavailable,
    TooManyCodes,
    VerificationRequired,
)
from export_pipeline.identity import Principal, Role
from export_pipeline.mail import Mailer
from export_pipeline.models import Actor
from export_pipeline.settings import Settings
from export_pipeline.verification import PER_HOUR, TRIES, Verification
from export_pipeline_tests.oidc_provider import free_port

ANNA = Principal(id="anna", roles=frozenset({Role.SUBJECT}), email="anna@example.org")
BERTA = Principal(id="berta", roles=frozenset({Role.SUBJECT}), email="berta@example.org")
ACTOR = Actor(id="anna", ip_address="192.0.2.7", user_agent="test")
SENDER = "exports@example.com"


class Inbox:
    """Takes mail, or refuses it."""

    def __init__(self) -> None:
        self.mails: list[tuple[Envelope, Message]] = []
        self.users: list[bytes] = []
        self.answer = "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        self.mails.append((envelope, email.message_from_bytes(envelope.content)))
        return self.answer

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        self.users.append(data.login)
        return AuthResult(success=data.password == b"p@ss word")

    def code(self) -> str:
        """The code of the newest mail."""
        [code] = re.findall(r"^ +(\d{8})\r?$", self.mails[-1][1].get_payload(), re.MULTILINE)
        return code


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def smtp_url(inbox: Inbox) -> Iterator[str]:
    port = free_port()
    how = {"authenticator": inbox.authenticate, "auth_require_tls": False}
    server = Controller(inbox, hostname="127.0.0.1", port=port, **how)
    server.start()
    try:
        yield f"smtp://127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture
def services(settings: Settings, smtp_url: str) -> Iterator[wiring.Services]:
    mailing = settings.model_copy(update={"smtp_url": SecretStr(smtp_url), "smtp_from": SENDER})
    with wiring.connect(mailing) as made:
        yield made


@pytest.fixture
def verification(services: wiring.Services) -> Verification:
    return services.verification


def rows(services: wiring.Services, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(services.database_url) as connection:
        return connection.execute(statement.encode()).fetchall()


def trail(services: wiring.Services) -> list[tuple[Any, ...]]:
    return rows(
        services,
        "SELECT action, user_id, actor, ip_address FROM export_pipeline.export_audit_logs"
        " WHERE action LIKE 'verif%' ORDER BY log_id",
    )


def other(code: str) -> str:
    """Another code."""
    return f"{(int(code) + 1) % 10**8:08d}"


# --- codes


def test_a_code_is_sent_and_counts_once(verification: Verification, services: wiring.Services, inbox: Inbox) -> None:
    before = datetime.now(UTC)
    expires_at = verification.send(ANNA)
    assert timedelta(minutes=9) < expires_at - before < timedelta(minutes=11)
    [(envelope, mail)] = inbox.mails
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, ["anna@example.org"])
    assert (mail["From"], mail["To"], mail["Subject"]) == (SENDER, "anna@example.org", "Your code")
    assert inbox.code() not in mail["Subject"]
    verification.require_verified(ANNA, inbox.code(), ACTOR)
    with pytest.raises(VerificationRequired, match="no code that counts"):
        verification.require_verified(ANNA, inbox.code(), ACTOR)
    assert trail(services) == [("verified", "anna", "anna", "192.0.2.7")]


def test_people_may_write_a_code_as_they_read_it(verification: Verification, inbox: Inbox) -> None:
    verification.send(ANNA)
    code = inbox.code()
    verification.require_verified(ANNA, f" {code[:4]}-{code[4:]} ", ACTOR)


def test_a_wrong_code_may_be_tried_five_times(
    verification: Verification, services: wiring.Services, inbox: Inbox
) -> None:
    verification.send(ANNA)
    for _ in range(TRIES):
        with pytest.raises(VerificationRequired, match="wrong") as refused:
            verification.require_verified(ANNA, other(inbox.code()), ACTOR)
        assert inbox.code() not in str(refused.value)
    with pytest.raises(VerificationRequired, match="no code that counts"):
        verification.require_verified(ANNA, inbox.code(), ACTOR)
    # Tries without a code to be tried leave no row: they could fill the trail.
    assert trail(services) == [("verification_refused", "anna", "anna", "192.0.2.7")] * TRIES


def test_nobody_gets_more_tries_by_trying_at_once(verification: Verification, inbox: Inbox) -> None:
    verification.send(ANNA)
    start, wrong = threading.Barrier(12), other(inbox.code())

    def attempt(_: int) -> str:
        start.wait()
        with pytest.raises(VerificationRequired) as refused:
            verification.require_verified(ANNA, wrong, ACTOR)
        return refused.value.message

    with ThreadPoolExecutor(12) as pool:
        said = list(pool.map(attempt, range(12)))
    assert said.count("The code is wrong.") == TRIES


def test_a_right_code_counts_once_for_many_at_once(verification: Verification, inbox: Inbox) -> None:
    verification.send(ANNA)
    start = threading.Barrier(8)

    def attempt(_: int) -> bool:
        start.wait()
        try:
            verification.require_verified(ANNA, inbox.code(), ACTOR)
        except VerificationRequired:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(attempt, range(8))) == [False] * 7 + [True]


def test_a_code_is_of_one_person(verification: Verification, inbox: Inbox) -> None:
    verification.send(ANNA)
    code = inbox.code()
    with pytest.raises(VerificationRequired, match="no code that counts"):
        verification.require_verified(BERTA, code, ACTOR)
    verification.send(BERTA)
    with pytest.raises(VerificationRequired, match="wrong"):
        verification.require_verified(BERTA, code, ACTOR)
    verification.require_verified(ANNA, code, ACTOR)


def test_only_the_newest_code_counts(verification: Verification, inbox: Inbox) -> None:
    verification.send(ANNA)
    old = inbox.code()
    verification.send(ANNA)
    with pytest.raises(VerificationRequired, match="wrong"):
        verification.require_verified(ANNA, old, ACTOR)
    verification.require_verified(ANNA, inbox.code(), ACTOR)
    with pytest.raises(VerificationRequired, match="no code that counts"):
        verification.require_verified(ANNA, old, ACTOR)


def test_an_old_code_does_not_count(verification: Verification, services: wiring.Services, inbox: Inbox) -> None:
    verification.send(ANNA)
    with psycopg.connect(services.database_url) as connection:
        connection.execute("UPDATE export_pipeline.export_verification_codes SET expires_at = now()")
    with pytest.raises(VerificationRequired, match="no code that counts"):
        verification.require_verified(ANNA, inbox.code(), ACTOR)


@pytest.mark.parametrize("code", ["", " ", "1", "12345678901234567890", "٠١٢٣٤٥٦٧", "\0", "' OR 1=1", "\ud800"])
def test_odd_codes_are_wrong(verification: Verification, code: str) -> None:
    verification.send(ANNA)
    with pytest.raises(VerificationRequired, match="wrong"):
        verification.require_verified(ANNA, code, ACTOR)


def test_a_code_is_kept_so_that_the_tables_alone_do_not_give_it_away(
    verification: Verification, services: wiring.Services, inbox: Inbox
) -> None:
    verification.send(ANNA)
    [(kept, code_hash)] = rows(
        services, "SELECT c::text, code_hash FROM export_pipeline.export_verification_codes AS c"
    )
    assert inbox.code() not in kept
    assert "example.org" not in kept
    assert len(code_hash) == 32


# --- limits


def test_five_codes_an_hour(verification: Verification, services: wiring.Services, inbox: Inbox) -> None:
    start = threading.Barrier(PER_HOUR + 3)

    def send(_: int) -> int:
        start.wait()
        try:
            verification.send(ANNA)
        except TooManyCodes as refused:
            assert (refused.limit, 3500 < refused.retry_after_s <= 3600) == (PER_HOUR, True)
            assert "codes" in str(refused)
            return 0
        return 1

    with ThreadPoolExecutor(PER_HOUR + 3) as pool:
        assert sum(pool.map(send, range(PER_HOUR + 3))) == PER_HOUR
    assert len(inbox.mails) == PER_HOUR
    verification.send(BERTA)
    with psycopg.connect(services.database_url) as connection:
        connection.execute(
            "UPDATE export_pipeline.export_verification_codes SET created_at = now() - interval '61 minutes'"
        )
    verification.send(ANNA)


def test_old_rows_go(verification: Verification, services: wiring.Services) -> None:
    verification.send(ANNA)
    with psycopg.connect(services.database_url) as connection:
        connection.execute(
            "UPDATE export_pipeline.export_verification_codes SET created_at = now() - interval '2 days'"
        )
    verification.send(BERTA)
    assert rows(services, "SELECT user_id FROM export_pipeline.export_verification_codes") == [("berta",)]


def test_a_code_that_was_not_sent_does_not_count_against_anybody(
    verification: Verification, services: wiring.Services, inbox: Inbox
) -> None:
    inbox.answer = "550 no anna@example.org here"
    for _ in range(PER_HOUR + 2):
        with pytest.raises(MailUnavailable) as refused:
            verification.send(ANNA)
        assert "anna" not in str(refused.value)
        assert refused.value.__cause__ is None
    assert rows(services, "SELECT * FROM export_pipeline.export_verification_codes") == []


# --- a recent sign-in


@pytest.mark.parametrize(
    ("age", "counts"),
    [
        (timedelta(0), True),
        (timedelta(minutes=14), True),
        (timedelta(minutes=16), False),
        (timedelta(seconds=-20), True),
        (timedelta(minutes=-5), False),
        (timedelta(days=400), False),
    ],
)
def test_a_recent_sign_in_is_enough(verification: Verification, age: timedelta, counts: bool) -> None:
    anna = replace(ANNA, auth_time=datetime.now(UTC) - age)
    if counts:
        verification.require_verified(anna, None, ACTOR)
    else:
        with pytest.raises(VerificationRequired, match="POST /api/verification"):
            verification.require_verified(anna, None, ACTOR)


def test_without_a_code_and_a_sign_in_nobody_is_verified(verification: Verification) -> None:
    with pytest.raises(VerificationRequired):
        verification.require_verified(ANNA, None, ACTOR)


# --- mail


def test_who_has_no_address_is_told_what_else_to_do(verification: Verification) -> None:
    with pytest.raises(InvalidRequest, match="Sign in again"):
        verification.send(replace(ANNA, email=None))


def test_an_installation_without_a_mail_server_says_so(settings: Settings) -> None:
    with wiring.connect(settings) as services, pytest.raises(InvalidRequest, match="sends no codes"):
        services.verification.send(ANNA)
    with pytest.raises(ConfigurationError):
        Mailer(None, None).send("anna@example.org", "x", "x")


@pytest.mark.parametrize(
    "address",
    [
        "", "anna", "a@b@c", "a@b\r\nBcc: evil@example.org", "a@b\nx", "a@b, c", "<a@b>", "a b@c", '"a"@b', "a@b;c",
        "@\0", "anna@", "@example.org",
        # Over these the parser stumbles, or understands another address, or none.
        "a@[", "a@[192.0.2.7", "a@b.", "(a@b", "a@b)", "a@(", "[@]", "a@b\\", "a\\@b", "a:@b", "a@b:",
        "=?utf-8?q?x?=@b",
    ],
)  # fmt: skip
def test_no_address_can_be_made_into_more(smtp_url: str, inbox: Inbox, address: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Mailer(smtp_url, SENDER).send(address, "Subject", "Text")
    assert str(refused.value) == "This is no e-mail address."
    assert inbox.mails == []


def test_a_password_signs_in(smtp_url: str, inbox: Inbox) -> None:
    with_password = smtp_url.replace("://", "://robot:p%40ss%20word@")
    Mailer(with_password, SENDER).send("anna@example.org", "Grüße", "Zeile ☃")
    assert inbox.users == [b"robot"]
    with pytest.raises(MailUnavailable) as refused:
        Mailer(with_password.replace("word", "w"), SENDER).send("anna@example.org", "x", "x")
    assert "robot" not in str(refused.value)
    with pytest.raises(MailUnavailable) as refused:  # SMTP has no letters for it
        Mailer(with_password.replace("word", "w%C3%B6rd"), SENDER).send("anna@example.org", "x", "x")
    assert "\N{LATIN SMALL LETTER O WITH DIAERESIS}" not in str(refused.value)


def test_a_server_that_is_away_is_said(smtp_url: str) -> None:
    with pytest.raises(MailUnavailable, match="ConnectionRefusedError"):
        Mailer("smtp://127.0.0.1:1", SENDER).send("anna@example.org", "x", "x")
    with pytest.raises(MailUnavailable, match="SSLError"):
        Mailer(smtp_url.replace("smtp:", "smtps:"), SENDER).send("anna@example.org", "x", "x")


def test_errors_of_mail_are_worth_another_try() -> None:
    assert MailUnavailable("Away.").retryable
