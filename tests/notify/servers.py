"""Real servers that notifications are delivered to: SMTP, with and without TLS, and HTTP."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOST = "127.0.0.1"
PATIENCE = 20.0


@dataclass
class Certificates:
    """Of a server on this machine, and of who vouches for it."""

    authority: Path
    server: ssl.SSLContext

    @property
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


def make_certificates(directory: Path) -> Certificates:
    now = datetime.now(UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Holdfast tests")])
    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys((*unused, "encipher_only", "decipher_only"), False)

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(root_name)
            .subject_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
        .add_extension(root_id, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(HOST))]
            ),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False
        )
        .sign(root_key, hashes.SHA256())
    )
    authority, chain = directory / "authority.pem", directory / "server.pem"
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Certificates(authority, context)


@dataclass
class Received:
    """A mail as it came."""

    sender: str
    recipients: list[str]
    content: bytes
    """As it went over the wire."""
    by_tls: bool
    login: str | None

    @property
    def mail(self) -> EmailMessage:
        parsed = BytesParser(policy=default).parsebytes(self.content)
        assert isinstance(parsed, EmailMessage)
        return parsed

    @property
    def text(self) -> str:
        return str(self.mail.get_content())


@dataclass
class MailServer:
    """An SMTP server. `answer` to a mail; `users` and their passwords where a login is wanted."""

    answer: str = "250 Message accepted"
    users: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    port: int = 0

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        if self.answer.startswith("2"):
            assert envelope.mail_from is not None
            assert isinstance(envelope.original_content, bytes)
            self.received.append(
                Received(
                    envelope.mail_from,
                    [str(recipient) for recipient in envelope.rcpt_tos],
                    envelope.original_content,
                    session.ssl is not None or server.transport.get_extra_info("sslcontext") is not None,
                    self.logins[-1] if self.logins else None,
                )
            )
        return self.answer

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append(data.login.decode())
        good = self.users.get(data.login.decode()) == data.password.decode()
        return AuthResult(success=good, handled=False)

    @contextmanager
    def running(
        self, *, starttls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None, port: int = 0
    ) -> Iterator[MailServer]:
        """`port`: one of `free_port`, by default any."""
        loop = asyncio.new_event_loop()

        def protocol() -> SMTP:
            with warnings.catch_warnings():
                # It takes a login without TLS, so that it can be seen that none is tried.
                warnings.simplefilter("ignore")
                return SMTP(
                    self,
                    hostname="mail.test",
                    tls_context=starttls,
                    authenticator=self.authenticate if self.users else None,
                    auth_required=bool(self.users),
                    auth_require_tls=False,
                    loop=loop,
                )

        held = _held.pop(port, None) or socket.create_server((HOST, 0))
        listening = loop.run_until_complete(loop.create_server(protocol, sock=held, ssl=tls))
        self.port = listening.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(_close(listening), loop).result(PATIENCE)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(PATIENCE)
            loop.close()


async def _close(listening: asyncio.Server) -> None:
    listening.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # transports close in the next turn of the loop


@contextmanager
def rude_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does `talk` with who connects, and hangs up. Its port."""
    listening = socket.create_server((HOST, 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(PATIENCE)


_held: dict[int, socket.socket] = {}


def free_port() -> int:
    """One that nobody listens on, nor will until `release`: another test's server could be given it otherwise."""
    held = socket.socket()
    held.bind((HOST, 0))
    port: int = held.getsockname()[1]
    _held[port] = held
    return port


def release() -> None:
    """Lets go of what `free_port` has given."""
    while _held:
        _held.popitem()[1].close()


@dataclass
class Request:
    method: str
    path: str
    body: bytes


@dataclass
class WebServer:
    """An HTTP server. `answers` by path: a status, or where a redirect leads."""

    answers: dict[str, int | str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @contextmanager
    def running(self, *, tls: ssl.SSLContext | None = None) -> Iterator[WebServer]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                web.requests.append(Request(self.command, self.path, body))
                answer = web.answers.get(self.path, 200)
                self.send_response(302 if isinstance(answer, str) else answer)
                if isinstance(answer, str):
                    self.send_header("Location", answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = answer  # noqa: N815 - the standard library's

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's
                pass

        server = ThreadingHTTPServer((HOST, 0), Handler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        self.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(PATIENCE)
