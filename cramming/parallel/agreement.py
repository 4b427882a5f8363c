"""All ranks must run the same code with the same options on the same data; what differs is found before any step.

A difference would not be noticed by itself: ranks that save at other steps wait for each other for ever, and other
weights or data spoil a run in silence.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from cramming import folder
from cramming.config import PretrainConfig
from cramming.errors import UserError
from cramming.parallel.meeting import Meeting

_ROOT = Path(__file__).resolve().parents[2]
_CODE = ("cramming", "efficient_training", "rst")
_LIBRARIES = ("torch", "numpy", "transformers", "tokenizers")
# Of ``impl``, what each machine may have in its own way; by the rest ranks decide together what to do when.
_OWN = ("threads", "devices", "allocator", "tensorboard")
_ALSO = ("name", "resume", "stop_at")  # may differ from start to start, but not between ranks
_ABSENT = "absent"
_CURES = {
    "command": "give all the same command, code and versions of libraries",
    "data": "give all machines the same text, or a data_dir that they share",
}


def statement(config: PretrainConfig, device: str) -> dict[str, Any]:
    """What a rank says about itself: versions, a hash of each file of the code, options; JSON values by key."""
    options: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    kept = {key: value for key, value in options["impl"].items() if key not in _OWN}
    said: dict[str, Any] = {"device": device, "python": platform.python_version()}
    said |= {name: _version(name) for name in _LIBRARIES}
    said |= code(_ROOT)
    said |= {"options": options, **{f"impl.{key}": value for key, value in kept.items()}}
    return said | {key: options[key] for key in _ALSO}


def code(root: Path) -> dict[str, str]:
    """A hash of each Python file of ours, by its path."""
    files = (file for package in _CODE for file in sorted((root / package).rglob("*.py")))
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files}


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key in which two statements differ, with both values; what may differ is left out."""
    options = folder.differences(theirs.get("options"), ours.get("options"))
    for key, left, right in options:
        return key, left, right
    for key in dict.fromkeys((*theirs, *ours)):
        left, right = theirs.get(key, _ABSENT), ours.get(key, _ABSENT)
        if key != "options" and left != right:
            return key, left, right
    return None


def check(meeting: Meeting, about: Literal["command", "data"], ours: dict[str, Any]) -> None:
    """Hold what this rank says against what the main rank says.

    Args:
        meeting: the ranks'.
        about: what it is that they say.
        ours: JSON values by key.

    Raises:
        UserError: the first difference, with both ranks.
    """
    theirs = meeting.alike(about, ours)
    differing = first_difference(theirs, ours)
    if differing is None:
        return
    key, left, right = differing
    raise UserError(
        f"ranks differ in {key}: it is {left} on {meeting.named(0)} and {right} on "
        f"{meeting.named(meeting.ranks.rank)}; {_CURES[about]}"
    )


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return _ABSENT
