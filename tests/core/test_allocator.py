"""Freed memory is kept where the C library can be told to keep it, and given back when that is asked for."""

import subprocess
import sys

import pytest
import torch

from cramming import allocator, resolve
from cramming.config import ImplConfig

_COUNTS = """
import resource, sys
import torch
from cramming import allocator
print(allocator.use(sys.argv[1]))
def step():
    kept = [torch.ones(16, 1 << 20) for _ in range(4)]  # 64 MB each
    return sum(float(block[0, 0]) for block in kept)
for _ in range(12):  # until blocks that are neighbours have found places to stay
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(choice: str) -> tuple[str, int]:
    """What is in use, and the page faults of a later step of 256 MB, in a process of its own."""
    ended = subprocess.run([sys.executable, "-c", _COUNTS, choice], capture_output=True, text=True, check=True)
    said, count = ended.stdout.split()
    return said, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_a_later_step_asks_for_no_page_again() -> None:
    kept, few = _faults("auto")
    given_back, many = _faults("system")
    assert given_back == "system"
    if kept == "system":
        pytest.skip("this C library cannot be told")
    assert few < many / 10


def test_the_last_word_counts() -> None:
    before = allocator.in_use()
    try:
        kept = allocator.use("keep")
        assert allocator.in_use() == kept
        assert allocator.use("system") == allocator.in_use() == "system"
        assert allocator.use("auto") == kept
    finally:
        allocator.use(before)


def test_a_run_says_what_it_wants_and_prices_do_not_depend_on_it() -> None:
    before, threads = allocator.in_use(), torch.get_num_threads()
    try:
        kept = allocator.use("keep")
        resolve.resolve(ImplConfig(allocator="system", threads=1), None)
        assert allocator.in_use() == "system"
        torch.set_num_threads(1)
        with resolve.whole_machine():
            assert allocator.in_use() == kept
            assert torch.get_num_threads() == resolve.available_cores()
        assert (allocator.in_use(), torch.get_num_threads()) == ("system", 1)
    finally:
        allocator.use(before)
        torch.set_num_threads(threads)


def test_another_c_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = allocator.use("system")
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert allocator.use("keep") == before == "system"
