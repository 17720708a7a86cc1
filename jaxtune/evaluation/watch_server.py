"""The live page's server: this machine only, reading only.

A page of another site must not be able to read runs through the browser, so requests are answered only when they name this machine (a
foreign name that resolves here, DNS rebinding, is refused) and nothing allows other origins. Nothing in a request names a path.
"""

from __future__ import annotations

import json
import secrets
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jaxtune.core.errors import ConfigError
from jaxtune.evaluation.pages import fill
from jaxtune.evaluation.watch import Runs

ADDRESS = "127.0.0.1"
TIMEOUT_SECONDS = 30
PAGE_POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; sandbox"


class Server(ThreadingHTTPServer):
    """Answers for one folder of runs until it is shut down.

    Raises:
        ConfigError: the folder is not there, or the port is taken.
    """

    daemon_threads = True  # a browser that holds a connection does not hold up the end

    def __init__(self, folder: Path, port: int = 0):
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder; expected a run folder or a folder of runs, such as runs/")
        self.runs = Runs(folder)
        self.reading = threading.Lock()
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise ConfigError(f"port {port} cannot be used ({error.strerror}); name another one with --port, or 0 for any") from error

    @property
    def address(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the Host of a request may say."""
        end = "" if self.server_port == 80 else f":{self.server_port}"  # browsers leave the usual port out
        return tuple(f"{name}{end}" for name in (ADDRESS, "localhost"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to print."""


class Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]
    server_version, sys_version = "jaxtune", ""
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.hosts or self.headers.get("Origin", self.origin) != self.origin:
            self.answer(HTTPStatus.FORBIDDEN, "text/plain", f"Open {self.server.address} instead.\n")
            return
        asked = urlsplit(self.path)
        wanted = parse_qs(asked.query).get("id", [""])[0]
        if asked.path == "/":
            nonce = secrets.token_urlsafe(16)
            policy = PAGE_POLICY.format(nonce=nonce)
            self.answer(HTTPStatus.OK, "text/html", fill("watch.html", nonce=nonce, page_policy=policy), policy)
        elif asked.path == "/runs.json":
            with self.server.reading:
                self.server.runs.refresh()
                table = self.server.runs.table()
            self.json(table)
        elif asked.path in ("/curves.json", "/report"):
            with self.server.reading:
                run = self.server.runs.find(wanted)
                curves = run.curves() if run is not None and asked.path == "/curves.json" else None
            if run is None:
                self.answer(HTTPStatus.NOT_FOUND, "text/plain", "There is no such run.\n")
            elif curves is not None:
                self.json(curves)
            else:
                self.report(run.folder / "report.html")
        else:
            self.answer(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page.\n")

    do_HEAD = do_GET

    def refuse(self) -> None:
        self.close_connection = True  # what it may have sent is not read
        self.answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", "This page can only be read.\n")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = refuse

    @property
    def origin(self) -> str:
        return f"http://{self.headers.get('Host')}"

    def report(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            self.answer(HTTPStatus.NOT_FOUND, "text/plain", "The run has no report yet.\n")
            return
        self.answer(HTTPStatus.OK, "text/html", text, REPORT_POLICY)

    def json(self, value: Any) -> None:
        self.answer(HTTPStatus.OK, "application/json", json.dumps(value, ensure_ascii=False, allow_nan=False))

    def answer(self, status: HTTPStatus, kind: str, text: str, policy: str = "default-src 'none'") -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", f"{policy}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is the user's."""


def serve(server: Server) -> None:
    """Answers until Ctrl-C."""
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
