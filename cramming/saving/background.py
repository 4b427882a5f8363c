"""Work that goes on beside training: one piece at a time, whose failure is told to whoever asks for the next."""

import threading
from collections.abc import Callable


class Background:
    """A thread for one piece of work at a time.

    The thread ends with the process, however that ends: what it writes must be whole or absent at every moment.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work; the one before it is over, which is waited for.

        Raises:
            BaseException: what the one before it raised.
        """
        self.wait()

        def guarded() -> None:
            try:
                work()
            except BaseException as failure:
                self._failure = failure

        self._thread = threading.Thread(target=guarded, name="saving", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way.

        Raises:
            BaseException: what the work raised, once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
