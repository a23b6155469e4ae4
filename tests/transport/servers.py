"""Small loopback servers for what the scripted seller does not speak: TLS, HTTP/2, proxying."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import io
import ipaddress
import selectors
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.loopback import Listener
from tests.support.seller import Hit, read_request

IDLE_S = 5.0


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes one way until either side ends."""
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Proxy(Listener):
    """A CONNECT and forward proxy, with a log of what it was asked for; optional basic login."""

    def __init__(self, login: str | None = None) -> None:
        self.asked: list[str] = []
        self.headers: list[str] = []
        self._login = login and "Basic " + base64.b64encode(login.encode()).decode()
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb", buffering=0) as raw, io.BufferedReader(raw, 1) as reader:
            while (hit := read_request(reader, 0)) is not None:
                self.asked.append(f"{hit.method} {hit.target}")
                self.headers += [name.lower() for name, _ in hit.headers]
                if self._login and hit.header("proxy-authorization") != self._login:
                    connection.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
                elif hit.method == "CONNECT":
                    self._tunnel(connection, hit.target)
                    return
                else:
                    self._forward(connection, hit)

    def _tunnel(self, connection: socket.socket, target: str) -> None:
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), IDLE_S) as upstream:
            connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            both(connection, upstream)

    def _forward(self, connection: socket.socket, hit: Hit) -> None:
        parts = urlsplit(hit.target)
        upstream = http.client.HTTPConnection(parts.netloc, timeout=IDLE_S)
        with closing(upstream):
            path = parts.path + ("?" + parts.query if parts.query else "")
            upstream.request(hit.method, path, body=hit.body, headers=dict(hit.headers))
            answer = upstream.getresponse()
            body = answer.read()
        lines = [f"HTTP/1.1 {answer.status} Status", *(f"{k}: {v}" for k, v in answer.getheaders())]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def both(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both ends are done."""
    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join(IDLE_S)


class Front(Listener):
    """TLS in front of a plain server on loopback."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        self._context, self._behind = context, port
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        with (
            self._context.wrap_socket(connection, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", self._behind), IDLE_S) as behind,
        ):
            relay(secure, behind)


def relay(secure: ssl.SSLSocket, plain: socket.socket) -> None:
    """Copy both ways in this one thread: two threads must not use one TLS connection at once."""
    with selectors.DefaultSelector() as selector:  # select() knows no file beyond the 1024th
        selector.register(secure, selectors.EVENT_READ)
        selector.register(plain, selectors.EVENT_READ)
        _relay(secure, plain, selector)


def _relay(secure: ssl.SSLSocket, plain: socket.socket, selector: selectors.BaseSelector) -> None:
    while ready := [key.fileobj for key, _ in selector.select(IDLE_S)]:
        if plain in ready:
            data = plain.recv(65536)
            if not data:
                return
            secure.settimeout(IDLE_S)
            secure.sendall(data)
        if secure in ready:
            secure.setblocking(False)
            with suppress(ssl.SSLWantReadError):
                while True:  # whole records wait in the connection, where select does not see them
                    data = secure.recv(65536)
                    if not data:
                        return
                    plain.sendall(data)


class Http2(Listener):
    """HTTP/2 with prior knowledge: *answer* makes status, headers and body of request headers."""

    def __init__(self, answer: Callable[[dict[str, str]], tuple[int, list[Any], bytes]]) -> None:
        self._answer = answer
        self.requests: list[dict[str, str]] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection
        from h2.events import RequestReceived, StreamEnded

        speech = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        speech.initiate_connection()
        connection.sendall(speech.data_to_send())
        while data := connection.recv(65536):
            for event in speech.receive_data(data):
                if isinstance(event, RequestReceived):
                    self.requests.append({str(k): str(v) for k, v in event.headers or ()})
                if isinstance(event, StreamEnded):
                    status, headers, body = self._answer(self.requests[-1])
                    speech.send_headers(
                        event.stream_id, [(":status", str(status)), *headers, ("x-h2", "yes")]
                    )
                    speech.send_data(event.stream_id, body, end_stream=True)
            connection.sendall(speech.data_to_send())


def certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server context for 127.0.0.1, and the file with the authority that signed it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = directory / "server.pem", directory / "server.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public
