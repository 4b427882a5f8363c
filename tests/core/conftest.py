"""What tests of the core share."""

from collections.abc import Iterator
from typing import Any

import pytest

from cramming.kernels import backends, choice, selftest
from tests.core.pretended import Pretend


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """Sets what stands behind ``triton`` and ``cuda``: a backend, or why there is none."""
    real = backends.of
    there: dict[str, Any] = {"triton": "there is none", "cuda": "not built: run make kernels"}

    def of(op: str, name: str) -> tuple[Any, str | None]:
        if name not in there:
            return real(op, name)
        return (None, there[name]) if isinstance(there[name], str) else (there[name], None)

    monkeypatch.setattr(backends, "of", of)
    monkeypatch.setattr(backends, "_refused", {})
    monkeypatch.setattr(backends, "_said", set())
    monkeypatch.setattr(choice, "_said", set())
    monkeypatch.setattr(selftest, "_tried", {})
    choice.fastest.cache_clear()
    yield there.update
    choice.fastest.cache_clear()
