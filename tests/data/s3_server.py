"""A real S3 server on loopback (moto's), and a proxy before it that makes the trouble a network and a service make.

Used by every test of object storage; where moto or s3fs is not installed, such tests are skipped::

    def test_x(s3: S3) -> None:
        s3.put("bucket/corpus/index.json", b"...")
        s3.refuse("shard.00001", times=2)          # 503 SlowDown
        s3.cut("shard.00002", after=1000)           # the connection breaks in the middle of the body
        s3.alter("shard.00003", times=1)            # a byte of the body is another
        s3.shorten("shard.00004", times=1)          # a part of the body, as if it were all
        s3.hold("shard.00005"); s3.release()        # answers only when it is let go
        s3.environment                              # for other processes; this one has it already
"""

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")
_SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
EXPIRED = (400, "ExpiredToken", "The provided token has expired.")
DENIED = (403, "AccessDenied", "Access Denied")
SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    range: str | None


class S3:
    """The server and its faults, from ``S3()`` to ``close()``."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.asked: list[Asked] = []
        self._faults: list[_Fault] = []
        self._gates: list[tuple[str, threading.Event]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Proxy,), {"s3": self, "target": self._moto.get_host_and_port()})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "not-a-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        self.empty()  # what is stored is one for all servers of a process

    def empty(self) -> None:
        """Nothing is stored, and nothing was asked."""
        self._directly("POST", "moto-api/reset", b"")
        self.asked.clear()

    def close(self) -> None:
        """Stop serving."""
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._moto.stop()

    def put(self, key: str, data: bytes) -> None:
        """An object, ``bucket/key``; the bucket is made with its first one. No fault is in the way."""
        bucket = key.partition("/")[0]
        for path, body in ((bucket, b""), (key, data)):
            self._directly("PUT", path, body)

    def get(self, key: str) -> bytes | None:
        """An object; None: there is none."""
        status, data = self._directly("GET", key, b"")
        return data if status == 200 else None

    def put_folder(self, prefix: str, folder: Any) -> None:
        """All files below a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def refuse(self, part: str, times: int = 1, how: tuple[int, str, str] = SLOW_DOWN) -> None:
        """Answer requests for keys with ``part`` in them with an error."""
        self._faults.append(_Fault(part, times, "refuse", how))

    def cut(self, part: str, after: int, times: int = 1) -> None:
        """Break the connection so many bytes into the body."""
        self._faults.append(_Fault(part, times, "cut", after))

    def alter(self, part: str, times: int = 1) -> None:
        """Change a byte in the middle of the body."""
        self._faults.append(_Fault(part, times, "alter", None))

    def shorten(self, part: str, times: int = 1) -> None:
        """Send the first half of the body as if it were all."""
        self._faults.append(_Fault(part, times, "shorten", None))

    def mend(self) -> None:
        """No more faults."""
        self._faults.clear()
        self.release()

    def hold(self, part: str) -> threading.Event:
        """Answer requests for keys with ``part`` in them only when this event, or ``release``, says so."""
        gate = threading.Event()
        self._gates.append((part, gate))
        return gate

    def release(self) -> None:
        """Answer everything that is held."""
        while self._gates:
            self._gates.pop()[1].set()

    def count(self, part: str, method: str = "GET") -> int:
        """Requests so far for keys with ``part`` in them."""
        return sum(part in one.path and one.method == method for one in self.asked)

    def fault(self, path: str) -> "_Fault | None":
        """What goes wrong with this request."""
        with self._lock:
            found = next((one for one in self._faults if one.part in path), None)
            if found is not None:
                found.times -= 1
                if found.times == 0:
                    self._faults.remove(found)
            return found

    def wait(self, path: str) -> None:
        """Return when the request may be answered."""
        for part, gate in list(self._gates):
            if part in path:
                gate.wait(60)

    def _directly(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self._moto.get_host_and_port(), timeout=60)
        try:
            connection.request(method, f"/{path}", body, {"Authorization": _SIGNED})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@dataclass
class _Fault:
    part: str
    times: int
    kind: str
    what: Any


class _Proxy(BaseHTTPRequestHandler):
    s3: S3
    target: tuple[str, int]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: tests look at ``asked``."""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.s3.asked.append(Asked(self.command, path, self.headers.get("Range")))
        self.s3.wait(path)
        fault = self.s3.fault(path)
        if fault is not None and fault.kind == "refuse":
            status, code, message = fault.what
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, text.encode())
            return
        connection = http.client.HTTPConnection(*self.target, timeout=60)
        try:
            headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            given = {key: value for key, value in answer.getheaders() if key.lower() not in _HOP}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self._answer(answer.status, given, data, fault, length)
        except OSError:  # a client that was killed, or the server behind that has all the connections it takes
            self.close_connection = True
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815 (names the base class looks for)

    def _answer(
        self, status: int, headers: dict[str, str], data: bytes, fault: _Fault | None = None, length: str | None = None
    ) -> None:
        kind = None if fault is None else fault.kind
        if kind == "alter":
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        elif kind == "shorten":
            data = data[: len(data) // 2]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: fault.what] if fault is not None and kind == "cut" else data)
        self.close_connection = kind == "cut"


def start(setenv: Callable[[str, str], None]) -> S3:
    """A server whose environment this process has, too."""
    import s3fs

    server = S3()
    for key, value in server.environment.items():
        setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()  # those of earlier tests know another address
    return server
