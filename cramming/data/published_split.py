"""The earlier study's split of a published set: which rows its runs trained on, and which it held out.

The study used ``Dataset.train_test_split(test_size=int(N * fraction), shuffle=True, seed=0)`` of Hugging Face's:
a permutation by numpy's default generator with seed 0, whose first rows are held out and whose others train, in the
order of the permutation. What it published about its training rows, its irreducible losses, names them by their place
in that order.

The permutation is kept beside the store as row numbers of four bytes; making it takes eight bytes a row of memory.
"""

import errno

import numpy as np
from numpy.typing import NDArray

from cramming.data.lock import locked
from cramming.data.store import TokenStore
from cramming.data.stream import Split
from cramming.durable import write_file
from cramming.errors import UserError

NAME = "study"
_FILE = "split-study.bin"
_SEED = 0


def study_split(store: TokenStore, heldout_fraction: float) -> Split:
    """The study's split of a whole published set.

    Raises:
        UserError: the store has only the first rows of the set, or its folder cannot be written.
    """
    if store.manifest.get("max_rows") is not None:
        raise UserError(
            f"data.heldout=study is the split of all rows of the published set, and this store has the first "
            f"{store.rows:,} of them; leave data.max_rows= out, or use data.heldout=ours"
        )
    order = _order(store)
    held_out = int(store.rows * heldout_fraction)
    return Split(store.rows, order=lambda places: order[places].astype(np.int64), heldout_rows=held_out, name=NAME)


def _order(store: TokenStore) -> NDArray[np.uint32]:
    """The permutation, (N,), mapped into memory; made if it is not there yet."""
    path = store.folder / _FILE
    try:
        if not path.exists():
            with locked(path):
                if not path.exists():
                    write_file(path, [_permutation(store.rows).tobytes()], "split")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(
            f"data.heldout=study is kept beside the store, and {error.filename or path} cannot be written "
            f"({error.strerror}); set data_dir to a folder of your own"
        ) from error
    if path.stat().st_size != 4 * store.rows:
        raise UserError(f"{path} is damaged; delete it and run the same command again")
    return np.memmap(path, dtype="<u4", mode="r", shape=(store.rows,))


def _permutation(rows: int) -> NDArray[np.uint32]:
    return np.random.default_rng(_SEED).permutation(rows).astype("<u4")
