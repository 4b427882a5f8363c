"""A publisher on this machine: a record that lists files, and the files, in parts if asked for, cut off if told to."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RECORD = "/api/records/1"


class Publisher:
    """Serves ``files`` until ``close``.

    Tests set: ``cuts``, how many bytes each of the next answers may carry; ``gives_parts``, whether ranges are
    understood; ``status``, an error to answer files with; ``redirect``, where files are said to be; ``checksums``, lies
    about files. ``asked`` collects the ranges of the requests for files, ``None`` for a whole one.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cuts: list[int] = []
        self.gives_parts = True
        self.status: int | None = None
        self.redirect: str | None = None
        self.checksums: dict[str, str] = {}
        self.asked: list[str | None] = []
        handler = type("Handler", (_Handler,), {"publisher": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.record = self.address + RECORD
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def listing(self) -> bytes:
        """The record, as Zenodo's interface writes it."""
        entries = []
        for name, data in self.files.items():
            checksum = self.checksums.get(name) or hashlib.md5(data).hexdigest()
            links = {"self": f"{self.address}{RECORD}/files/{name}/content"}
            entries.append({"key": name, "size": len(data), "checksum": f"md5:{checksum}", "links": links})
        return json.dumps({"id": 1, "files": entries}).encode()


class _Handler(BaseHTTPRequestHandler):
    publisher: Publisher
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = re.fullmatch(rf"{RECORD}/files/([^/]+)/content", self.path)
        if self.path == RECORD:
            self._answer(200, self.publisher.listing())
        elif found is None or found[1] not in self.publisher.files:
            self._answer(404, b"")
        else:
            self._file(self.publisher.files[found[1]])

    do_HEAD = do_GET  # noqa: N815 (the name the base class looks for)

    def _file(self, data: bytes) -> None:
        told = self.publisher
        wanted = self.headers.get("Range")
        if self.command == "GET":
            told.asked.append(wanted)
        if told.redirect is not None:
            self._answer(302, b"", {"Location": told.redirect})
        elif told.status is not None:
            self._answer(told.status, b"")
        elif wanted is not None and told.gives_parts:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            place = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self._answer(206, data[start:], place, told.cuts)
        else:
            self._answer(200, data, {}, told.cuts)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None, cuts: Any = ()) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.command == "GET":
            self.wfile.write(data[: cuts.pop(0)] if cuts else data)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at ``asked``."""
