"""What was done, from what, and what came of it: whether a stage must be done again.

A stage is left out when its command line and all it reads are what they were, and every file it left is still there
with the content it had. Nothing is believed because a marker says so.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cramming.data.fingerprint import content_hashes, fingerprint
from cramming.durable import write_atomically
from cramming.errors import UserError
from cramming.progress import Silent

_FILE = "record.json"


@dataclass(frozen=True)
class Entry:
    """A stage that was done.

    Attributes:
        inputs: fingerprint of its command lines and of what they read.
        outputs: files -> the SHA-256 of their content.
        wall_s: how long it took.
    """

    inputs: str
    outputs: dict[str, str]
    wall_s: float

    @property
    def digest(self) -> str:
        """What a later stage depends on."""
        return fingerprint(self.outputs)


class Record:
    """The entries of a pipeline, on disk in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, Entry] = {}
        try:
            stored = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            self._entries = {label: Entry(**entry) for label, entry in stored.items()}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError, OSError):
            self._entries = {}  # everything is looked at again; each command knows by itself what it has finished

    def entry(self, label: str) -> Entry | None:
        """What was written down for a stage."""
        return self._entries.get(label)

    def whole(self, label: str, inputs: str) -> bool:
        """Whether a stage was done from these inputs, and everything it left is as it left it."""
        entry = self._entries.get(label)
        if entry is None or entry.inputs != inputs or not entry.outputs:
            return False
        files = [Path(name) for name in entry.outputs]
        return all(file.is_file() for file in files) and self._hashes(files) == entry.outputs

    def done(self, label: str, inputs: str, outputs: Sequence[Path], wall_s: float) -> None:
        """Write down that a stage was done.

        Raises:
            UserError: it left a file out that it had to write, or the disk is full.
        """
        missing = [file for file in outputs if not file.is_file()]
        if missing or not outputs:
            raise UserError(f"{label} ended without writing {missing[0] if missing else 'anything'}")
        self._entries[label] = Entry(inputs, self._hashes(outputs), wall_s)
        text = json.dumps({name: asdict(entry) for name, entry in self._entries.items()}, indent=1)
        write_atomically(self._folder / _FILE, text.encode())

    def _hashes(self, files: Sequence[Path]) -> dict[str, str]:
        hashes = content_hashes(files, self._folder, Silent())
        return {str(file): sha256 for file, sha256 in zip(files, hashes, strict=True)}
