"""Worker processes: small, ordered, and gone when the process that started them is gone.

A worker is a fresh Python that imports one module of ours and answers requests on a pipe; when the other end closes,
for whatever reason, SIGKILL included, it ends. Unlike multiprocessing's, it never imports the user's main module
(which may well import torch) and needs nothing pickled: a message is JSON and bytes.
"""

import importlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from cramming.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Message = tuple[dict[str, Any], bytes]

# Each costs up to about 100 MB: with a main process that has torch loaded, all of preparing stays within 1 GB.
MOST_WORKERS = 5
_LENGTHS = struct.Struct("<QQ")
_ROOT = Path(__file__).resolve().parents[2]


def default_workers() -> int:
    """One per core this process may use, but not more than memory is promised for."""
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Workers:
    """``n`` worker processes, started when first needed; with ``n=0`` the work is done in this process.

    A task is a function named ``module:function`` that takes a JSON object and returns a JSON object and bytes.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._started: list[_Worker] = []
        self._threads = ThreadPoolExecutor(max(1, n))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=kind is None, cancel_futures=True)
        for worker in self._started:
            worker.stop()

    def ordered(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """``map(function, items)``, in order, several at a time; reads at most ``n + 1`` items ahead.

        ``function`` runs in a thread of this process and does its heavy work with ``call``.
        """
        if self._n == 0:
            yield from map(function, items)
            return
        running: deque[Future[Result]] = deque()
        for item in items:
            running.append(self._threads.submit(function, item))
            while len(running) > self._n + 1 or (running and running[0].done()):
                yield running.popleft().result()
        while running:
            yield running.popleft().result()

    def call(self, task: str, request: dict[str, Any]) -> Message:
        """Have an idle worker do ``task``.

        Raises:
            UserError: the task raised it, or the worker was killed.
        """
        if self._n == 0:
            return _find(task)(request)
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:  # at most n threads get here
            worker = _Worker()
            self._started.append(worker)
        answer, data = worker.call(task, request)
        self._idle.put(worker)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            raise RuntimeError(f"in a worker process:\n{answer['error']}")
        return answer, data


class _Worker:
    """One process and its pipe."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        single = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # -P: a module in the folder where the user started must not be taken for a package's.
        command = [sys.executable, "-P", "-c", "from cramming.data.workers import serve; serve()"]
        environment = {**os.environ, **single, "PYTHONPATH": path}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def call(self, task: str, request: dict[str, Any]) -> Message:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = None
        try:
            _send(self._process.stdin, {"task": task, "request": request}, b"")
            answer = _receive(self._process.stdout)
        except OSError as error:
            self.stop()
            raise self._ended() from error
        if answer is None:
            self.stop()
            raise self._ended()
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # what was still to be sent has no reader any more

    def _ended(self) -> UserError:
        return UserError(
            f"a preparing process ended unexpectedly (status {self._process.returncode}; out of memory?); "
            "run the same command again: it continues where it was"
        )


def serve() -> None:
    """The worker's side: answer requests until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not end up among the answers
    while (message := _receive(requests)) is not None:
        content = message[0]
        try:
            answer, data = _find(content["task"])(content["request"])
        except UserError as error:
            answer, data = {"user_error": str(error)}, b""
        except Exception:  # whatever it is, the parent raises it
            answer, data = {"error": traceback.format_exc()}, b""
        try:
            _send(answers, answer, data)
        except BrokenPipeError:
            return


def _find(task: str) -> Callable[[dict[str, Any]], Message]:
    module, _, name = task.partition(":")
    found: Callable[[dict[str, Any]], Message] = getattr(importlib.import_module(module), name)
    return found


def _send(stream: IO[bytes], content: dict[str, Any], data: bytes) -> None:
    encoded = json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(_LENGTHS.pack(len(encoded), len(data)))
    stream.write(encoded)
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Message | None:
    """The next message; ``None`` when the other end is gone."""
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    json_bytes, data_bytes = _LENGTHS.unpack(head)
    encoded = stream.read(json_bytes)
    data = stream.read(data_bytes)
    if len(encoded) < json_bytes or len(data) < data_bytes:
        return None
    content: dict[str, Any] = json.loads(encoded.decode("utf-8", "surrogatepass"))
    return content, data
