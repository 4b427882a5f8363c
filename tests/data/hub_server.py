"""A stand-in for the Hugging Face hub on loopback: enough of its HTTP for the libraries that read datasets and models.

Used with ``HF_ENDPOINT=<url>`` in another process (the libraries read it when they are imported)::

    with HubServer() as hub:
        hub.add("datasets", "owner/name", {"data/train.parquet": ...})
        hub.add("models", "owner/tokenizer", {"tokenizer.json": ...})
        environment = hub.environment(tmp_path)

Every request is written down in ``hub.requests``; ``hub.cut`` breaks connections in the middle of a file.
"""

import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repo:
    """A repository: its files at one commit."""

    files: dict[str, bytes]
    gated: bool = False
    listed: dict[str, str] = field(
        default_factory=dict
    )  # SHA-256 of files in the hub's large file storage, as it has it

    @property
    def sha(self) -> str:
        """The commit: a hash of the content."""
        digest = hashlib.sha1()
        for path, data in sorted(self.files.items()):
            digest.update(f"{path}\0{len(data)}\0".encode() + hashlib.sha1(data).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    """One request as it was answered."""

    method: str
    path: str  # of the URL, without the query
    file: str  # in the repository; empty where no file was asked for
    sent: int  # bytes of the body


class HubServer:
    """The server, in threads of this process, from ``with`` to the end of the block."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.commits: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self._cuts: dict[str, list[int]] = {}  # file: bytes still to be sent before a cut, how many cuts
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            hub = outer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, kind: str, name: str, files: dict[str, bytes], gated: bool = False, stored: str = "git") -> Repo:
        """A repository of ``datasets`` or ``models``; adding it again is another commit. ``stored``: or ``lfs``."""
        listed = {path: hashlib.sha256(data).hexdigest() for path, data in files.items() if stored == "lfs"}
        self.repos[kind, name] = repo = Repo(files, gated, listed)
        self.commits[repo.sha] = repo
        return repo

    def branch(self, name: str, revision: str, files: dict[str, bytes]) -> Repo:
        """Other files of a repository under a revision such as ``refs/convert/parquet``."""
        self.commits[f"{name}@{revision}"] = repo = Repo(files)
        self.commits[repo.sha] = repo
        return repo

    def cut(self, file: str, after: int, times: int = 1) -> None:
        """Break the connection after so many more bytes of a file were sent; then refuse it ``times - 1`` times."""
        self._cuts[file] = [after, times]

    def mend(self) -> None:
        """No more cuts."""
        self._cuts.clear()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for a process that is to use this server, with its caches below ``home``."""
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        kept = {key: value for key, value in kept.items() if not key.startswith("HF_")}
        caches = {"HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        return kept | caches | {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1"}

    def files_sent(self) -> list[str]:
        """The files of which anything was sent, each once, in the order of their first request."""
        return list(dict.fromkeys(request.file for request in self.requests if request.sent and request.file))

    def allowance(self, file: str, wanted: int) -> int:
        """How many of the bytes that are wanted may be sent before the connection breaks."""
        with self._lock:
            if file not in self._cuts:
                return wanted
            left, times = self._cuts[file]
            if left >= wanted:
                self._cuts[file][0] -= wanted
                return wanted
            self._cuts[file] = [0, times - 1]
            if times == 1:
                del self._cuts[file]
            return left


class _Handler(BaseHTTPRequestHandler):
    """The routes."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the screen."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api = re.fullmatch(r"/api/(datasets|models)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/(.+))?", path)
        resolve = re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        kind, name = (api[1], api[2]) if api else (resolve[1] or "models", resolve[2]) if resolve else ("", "")
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            self._refuse(401, "RepoNotFound", "Repository not found")
            return
        rest = (api[4] or "main") if api else resolve[3] if resolve else ""
        revision, _, inner = rest.partition("/")
        branch = self.hub.commits.get(f"{name}@{rest}")
        repo = branch or (repo if revision == "main" else self.hub.commits.get(revision))
        if repo is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif resolve:
            self._file(repo, resolve[4])
        elif api and api[3] == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._tree(repo, inner.strip("/"), recursive)
        elif api and api[3] == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._json([entry for entry in _entries(repo, "", True) if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            gated = "auto" if repo.gated else False
            self._json({"id": name, "sha": repo.sha, "private": False, "gated": gated, "siblings": siblings})

    def _tree(self, repo: Repo, folder: str, recursive: bool) -> None:
        entries = _entries(repo, folder, recursive)
        if not entries:
            self._refuse(404, "EntryNotFound", f"{folder} does not exist")
        else:
            self._json(entries)

    def _file(self, repo: Repo, file: str) -> None:
        if repo.gated:
            self._refuse(401, "GatedRepo", "Access to this dataset is restricted")
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound", f"{file} does not exist", repo.sha)
            return
        data = repo.files[file]
        first, last, status = 0, len(data) - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last, status = int(asked[1]), min(last, int(asked[2] or last)), 206
        if first > last:
            self._refuse(416, "", "")
            return
        self.send_response(status)
        self.send_header("X-Repo-Commit", repo.sha)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        wanted = 0 if self.command == "HEAD" else last - first + 1
        allowed = self.hub.allowance(file, wanted) if wanted else 0
        self._log(file, allowed)
        self.wfile.write(data[first : first + allowed])
        if allowed < wanted:
            self.close_connection = True

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self._log("", len(data))
        self.wfile.write(data)

    def _refuse(self, status: int, code: str, message: str, commit: str = "") -> None:
        self.send_response(status)
        for name, value in (("X-Error-Code", code), ("X-Error-Message", message), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self._log("", 0)

    def _log(self, file: str, sent: int) -> None:
        self.hub.requests.append(Request(self.command, urlsplit(self.path).path, file, sent))


def _entries(repo: Repo, folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What is in a folder of a repository, as the hub lists it."""
    prefix = f"{folder}/" if folder else ""
    folders: dict[str, None] = {}
    files: list[dict[str, Any]] = []
    for path, data in sorted(repo.files.items()):
        if not path.startswith(prefix):
            continue
        below = path[len(prefix) :].split("/")
        for depth in range(1, len(below)):
            if recursive or depth == 1:
                folders[prefix + "/".join(below[:depth])] = None
        if recursive or len(below) == 1:
            file = {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": path}
            if path in repo.listed:
                file["lfs"] = {"oid": repo.listed[path], "size": len(data), "pointerSize": 100}
            files.append(file)
    return [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders] + files
