"""Published files: fetched over HTTPS, continued where a cut connection left off, used only if their checksum is right.

A file on its way is ``<name>.part``; it gets its name when its MD5 is the published one. Records are those of Zenodo's
interface (https://developers.zenodo.org): JSON that lists every file with its address, size and checksum.
"""

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from cramming import faults
from cramming.data.lock import locked
from cramming.durable import is_full, replace, room_for, sync
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.suggest import nearest
from cramming.text import quantity

_CHUNK_BYTES = 1 << 20
_MOST_RECORD_BYTES = 1 << 24
_TIMEOUT_S = 60.0  # without a byte
# Before trying again, after so many attempts in a row that brought nothing new.
_WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PASSING = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class RemoteFile:
    """A file as its publisher describes it."""

    name: str
    url: str
    size: int  # bytes
    md5: str


def from_record(record: str, name: str) -> RemoteFile:
    """The file ``name`` of the record at the address ``record``.

    Raises:
        UserError: the record cannot be read, or lists no such file.
    """
    try:
        with _open(record) as answer:
            listed = {str(entry["key"]): entry for entry in json.loads(answer.read(_MOST_RECORD_BYTES))["files"]}
        if name not in listed:
            raise UserError(f"{record} has no file {name!r}{nearest(name, list(listed))}")
        entry = listed[name]
        return RemoteFile(name, entry["links"]["self"], int(entry["size"]), plain_md5(entry["checksum"]))
    except UserError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"{record} cannot be reached ({_reason(error)}); offline, bring {name} from another machine and give "
            "from=<that file> md5=<as the record's page prints it>"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{record} does not answer with a record that lists files; check url=") from error


def from_address(url: str, md5: str) -> RemoteFile:
    """A file by its own address, which no record describes.

    Raises:
        UserError: nothing is there, or its server does not tell its size.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    try:
        with _open(url, method="HEAD") as answer:
            size = answer.headers.get("Content-Length", "")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url} cannot be reached ({_reason(error)}); check url=, or give from=<file>") from error
    if not size.isdecimal():
        raise UserError(f"{url}: its server does not tell its size; fetch it another way and give from=<file>")
    return RemoteFile(name, url, int(size), plain_md5(md5))


def plain_md5(text: str) -> str:
    """32 hexadecimal digits of a checksum written with or without ``md5:`` before it.

    Raises:
        UserError: no MD5.
    """
    digits = text.removeprefix("md5:").lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise UserError(f"{text!r} is no MD5 checksum; it has 32 digits from 0 to f")
    return digits


def fetch(file: RemoteFile, folder: Path, progress: ProgressSink) -> Path:
    """The file below ``folder``, downloaded unless it is there, its checksum right.

    Killed or cut off and called again, it asks only for what is still missing.

    Raises:
        UserError: no connection, no room, or another content than was published.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(target, progress):
        if target.exists():
            check_md5(target, file.md5, progress)
            return target
        missing, free = file.size - _size(part), shutil.disk_usage(folder).free
        if missing > free:
            raise UserError(
                f"{file.name} needs {quantity(missing, 'B')} more, {folder} has {quantity(free, 'B')} free; "
                "set data_dir to a larger disk"
            )
        with room_for(part):
            _download(file, part, progress)
            check_md5(part, file.md5, progress)
            sync(part, "download")
            replace(part, target, "download")
    return target


def check_md5(path: Path, md5: str, progress: ProgressSink) -> None:
    """Hold a file against its published checksum.

    Raises:
        UserError: it differs, or the file cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    progress.stage(f"checking {path.name}", path.stat().st_size, "B")
    try:
        with open(path, "rb") as file:
            while data := file.read(_CHUNK_BYTES):
                digest.update(data)
                progress.advance(len(data))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    progress.done()
    if digest.hexdigest() != md5:
        raise UserError(
            f"{path} has the checksum {digest.hexdigest()}, the published file has {md5}: it is damaged or another "
            "file; delete it and download it again"
        )


def _download(file: RemoteFile, part: Path, progress: ProgressSink) -> None:
    """Bring ``part`` to the file's size."""
    if _size(part) > file.size:  # of an earlier version of the file
        part.unlink()
    best = _size(part)
    if best:
        progress.note(f"going on behind {quantity(best, 'B')} of {quantity(file.size, 'B')} of {file.name}")
    progress.stage(f"downloading {file.name}", file.size - best, "B")
    fruitless = 0
    while (have := _size(part)) < file.size:
        problem = "the connection was cut"
        try:
            _append(file, part, have, progress)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and is_full(error):
                raise
            problem = _reason(error)
            if isinstance(error, urllib.error.HTTPError) and error.code not in _PASSING:
                raise UserError(f"{file.url} cannot be fetched ({problem}); check url=") from error
        now = _size(part)
        fruitless = 0 if now > best else fruitless + 1  # a server that always begins anew brings nothing new
        best = max(best, now)
        if fruitless > len(_WAITS_S):
            raise UserError(
                f"{file.url} failed {fruitless} times in a row ({problem}); run the same command again: it goes on "
                f"behind {quantity(now, 'B')} of {quantity(file.size, 'B')}"
            )
        if now < file.size:
            time.sleep(_WAITS_S[max(0, fruitless - 1)])
    progress.done()


def _append(file: RemoteFile, part: Path, have: int, progress: ProgressSink) -> None:
    """One attempt at what is missing behind the first ``have`` bytes."""
    with _open(file.url, {"Range": f"bytes={have}-"} if have else {}) as answer:
        expected = file.size
        if answer.status == http.client.PARTIAL_CONTENT:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if told is None or int(told[1]) != have:
                raise UserError(f"{file.url} answers with another part than was asked for; check url=")
            expected = int(told[2])
        else:  # the server gives the whole file or nothing
            have, expected = 0, int(answer.headers.get("Content-Length", file.size))
        if expected != file.size:
            raise UserError(f"{file.url} has {expected} bytes, {file.size} were published; check url=")
        with open(part, "r+b" if part.exists() else "wb") as output:
            output.truncate(have)
            output.seek(have)
            while have < file.size and (data := answer.read1(min(_CHUNK_BYTES, file.size - have))):
                output.write(data)
                output.flush()
                have += len(data)
                progress.advance(len(data))
                faults.point("download-chunk")


class _OnlySafely(urllib.request.HTTPRedirectHandler):
    """Follows a server elsewhere only where we would have gone ourselves."""

    def redirect_request(  # noqa: PLR0917 (the library's signature)
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _open(url: str, headers: dict[str, str] | None = None, method: str = "GET") -> Any:
    _check_address(url)
    request = urllib.request.Request(url, headers={"User-Agent": "budget-bert", **(headers or {})}, method=method)
    return urllib.request.build_opener(_OnlySafely()).open(request, timeout=_TIMEOUT_S)


def _check_address(url: str) -> None:
    """Nothing is fetched that somebody on the way could have changed, checksums least of all."""
    try:
        parts = urllib.parse.urlsplit(url)
        safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    except ValueError:
        safe = False
    if not safe:
        raise UserError(f"{url} is no https:// address; files are fetched over HTTPS only")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return str(getattr(inner, "strerror", None) or inner or error or type(error).__name__)
