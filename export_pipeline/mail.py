"""Plain e-mail over SMTP."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import make_msgid
from urllib.parse import SplitResult, unquote, urlsplit

from export_pipeline.errors import ConfigurationError, InvalidRequest, MailUnavailable

_TIMEOUT_S = 10.0
_PORTS = {"smtp": 587, "smtps": 465}


class Mailer:
    """Sends e-mail by one server.

    Args:
        url: ``smtp://user:password@host:port``, or ``smtps://`` for TLS from the first byte; None means that there is
            no server. With ``smtp://`` the connection goes over to TLS where the server offers it, and a password is
            sent only then, or to this machine.
        sender: The address that mails come from.
    """

    def __init__(self, url: str | None, sender: str | None) -> None:
        self._url = url
        self._sender = sender

    @property
    def ready(self) -> bool:
        """Whether there is a server."""
        return self._url is not None and self._sender is not None

    def send(self, recipient: str, subject: str, text: str) -> None:
        """Send one mail.

        Raises:
            ConfigurationError: There is no server.
            InvalidRequest: The address is none.
            MailUnavailable: The server is away, or refuses. Its words are not passed on: they may name the recipient.
        """
        if self._url is None or self._sender is None:
            raise _no_server()
        message = _message(self._sender, recipient, subject, text)
        with _explained("does not take the mail"), _connected(urlsplit(self._url)) as server:
            server.send_message(message)

    def require(self) -> None:
        """Make sure that the server lets us in. Nothing is sent.

        Raises:
            ConfigurationError: There is no server.
            MailUnavailable: It is away, or refuses.
        """
        if self._url is None:
            raise _no_server()
        with _explained("does not let us in"), _connected(urlsplit(self._url)):
            pass


def _no_server() -> ConfigurationError:
    return ConfigurationError("No mail server is set.", hint="Set EXPORT_PIPELINE_SMTP_URL and _SMTP_FROM.")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (smtplib.SMTPException, OSError, UnicodeError) as error:
        raise MailUnavailable(
            f"The mail server {what} now ({type(error).__name__}).",
            hint="Check EXPORT_PIPELINE_SMTP_URL, and try again.",
        ) from None


def _message(sender: str, recipient: str, subject: str, text: str) -> EmailMessage:
    message = EmailMessage()
    if (
        recipient.count("@") != 1
        or "" in recipient.split("@")
        or not recipient.isprintable()
        or set(recipient) & set(' ,;<>"')
    ):
        raise InvalidRequest("This is no e-mail address.")
    try:
        message["To"] = recipient
        understood = [address.addr_spec for address in message["To"].addresses]
    except Exception:  # over some texts the parser stumbles, by errors that it does not name
        understood = []
    if understood != [recipient]:
        raise InvalidRequest("This is no e-mail address.")
    message["From"] = sender
    message["Subject"] = subject
    message["Message-ID"] = make_msgid(domain=sender.rpartition("@")[2].rstrip(">"))
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    return message


@contextmanager
def _connected(url: SplitResult) -> Iterator[smtplib.SMTP]:
    host, port = url.hostname or "", url.port or _PORTS[url.scheme]
    trusted = ssl.create_default_context()
    if url.scheme == "smtps":
        opened: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=_TIMEOUT_S, context=trusted)
    else:
        opened = smtplib.SMTP(host, port, timeout=_TIMEOUT_S)
    with opened as server:
        server.ehlo_or_helo_if_needed()
        private = url.scheme == "smtps" or host in {"localhost", "127.0.0.1", "::1"}
        if url.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=trusted)
            private = True
        if url.username:
            if not private:
                raise smtplib.SMTPNotSupportedError
            server.login(unquote(url.username), unquote(url.password or ""))
        yield server
