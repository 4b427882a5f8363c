"""Small files of a run that the main rank makes and all ranks read, whether or not their machines share a disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cramming.durable import write_atomically
from cramming.parallel.ranks import here


@contextmanager
def shared_files(folder: Path, pattern: str) -> Iterator[None]:
    """The main rank does the block first; the others then find in ``folder`` the text files it has there.

    Args:
        folder: of the run.
        pattern: of the files' names.
    """
    ranks = here()
    if ranks.main:
        with ranks.main_first():  # however long it takes
            yield
        ranks.told({file.name: file.read_text() for file in folder.glob(pattern)} if ranks.world > 1 else {})
        return
    with ranks.main_first():
        pass
    for name, text in ranks.told(None).items():
        if not (folder / name).exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, text.encode())
    yield
