"""A folder at any address, as mirrors use one: files that are whole or absent, listed, put, fetched and removed."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from cramming import remote

# Storages of objects: what is put appears when it is complete, and there are no folders to make.
_OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf", "memory", "http", "https"}


class Storage:
    """The folder.

    Args:
        address: any that fsspec knows, or a plain path.

    Raises:
        UserError: no such storage, or its package is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs, root = remote.filesystem(address)
        self._root = root.rstrip("/")
        protocol = self._fs.protocol
        self._objects = bool(_OBJECTS & set([protocol] if isinstance(protocol, str) else protocol))

    def explained(self) -> AbstractContextManager[None]:
        """What the storage raises inside the block as one line.

        Raises:
            UserError: in place of it.
        """
        return remote.explained(self.address)

    def look(self) -> None:
        """Raise what the storage says of a folder that is not there, or of a bucket."""
        self._fs.ls(self._root, detail=False)

    def files(self, folder: str = "") -> list[str]:
        """Names of all files below a folder, relative to the whole; none where there is no such folder."""
        try:
            found = self._fs.find(self._path(folder))
        except FileNotFoundError:
            return []
        start = self._fs._strip_protocol(self._root).rstrip("/") + "/"
        return sorted(str(path).removeprefix(start) for path in found)

    def read(self, name: str) -> bytes:
        """A small file."""
        return bytes(self._fs.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole or as it was before."""
        target = self._placed(name)
        if self._objects:
            self._fs.pipe_file(target, data)
        else:
            self._fs.pipe_file(f"{target}.part", data)
            self._fs.mv(f"{target}.part", target)

    def put(self, file: Path, name: str) -> None:
        """Copy a file there, whole or not at all."""
        target = self._placed(name)
        if self._objects:
            self._fs.put_file(str(file), target)
        else:
            self._fs.put_file(str(file), f"{target}.part")
            self._fs.mv(f"{target}.part", target)

    def get(self, name: str, file: Path) -> None:
        """Copy a file here, under its name when it is complete."""
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        self._fs.get_file(self._path(name), str(part))
        os.replace(part, file)

    def remove(self, name: str) -> None:
        """Remove a file that is there."""
        self._fs.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Remove a folder that is empty, where there are folders at all."""
        if not self._objects:
            self._fs.rmdir(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _placed(self, name: str) -> str:
        target = self._path(name)
        if not self._objects:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        return target
