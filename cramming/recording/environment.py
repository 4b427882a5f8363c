"""Where a run happened: versions, machine, git revision."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "datasets",
    "transformers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "lion-pytorch",
    "triton",
    "flash-attn",
    "wandb",
)
"""Packages that can change a number or a file; absent ones are left out."""

_SOURCES = Path(__file__).resolve().parents[2]
_TIMEOUT_S = 10


def environment(device: str) -> dict[str, Any]:
    """Versions and machine as plain JSON values; only looks, never imports what it reports on.

    Args:
        device: what the run computes on, in words (``NVIDIA H200``, ``cpu``): asking the device is not done here.
    """
    return {
        "device": device,
        "cpu": cpu_model(),
        "cpu_cores": _cores(),
        "memory_gb": _memory_gb(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": _versions(),
        "command": shlex.join(sys.argv),
    }


def git_revision(folder: Path = _SOURCES) -> str | None:
    """The commit the sources in ``folder`` are at, ``+changes`` behind it if tracked files differ from it.

    ``None`` if the folder is not the top of a git checkout (an installed copy inside somebody's own repository must not
    report theirs) or there is no git.
    """
    answer = _output("git", "-C", str(folder), "rev-parse", "--show-toplevel", "HEAD")
    if answer is None:
        return None
    top, revision = answer.split("\n")
    if Path(top).resolve() != folder.resolve():
        return None
    changes = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return f"{revision}+changes" if changes else revision


def cpu_model() -> str:
    """The processor's name as its maker writes it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _cores() -> int:
    """Cores this process may use, which on shared machines are fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _output(*command: str) -> str | None:
    """What a command prints, stripped; ``None`` if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
