"""The compiled submodule: whether it can be used on a device, and its operations.

``torch.ops.cramming_kernels.<name>`` are those of ``csrc/*_bindings.cpp``. Nothing is compiled here unless
``ensure_built`` is asked to.
"""

import functools
from typing import Any

import torch

from cramming.errors import UserError
from cramming.kernels import sources
from cramming.kernels.toolchain import OLDEST

_MAKE = "run make kernels"


def lacks(device: torch.device | str) -> str | None:
    """Why the compiled kernels cannot be used on a device; None: they can."""
    device = torch.device(device)
    return _unfit(device) or _library_lacks(_index(device))


def forget() -> None:
    """Look for the library again when next asked: a build has ended."""
    _library_lacks.cache_clear()


@functools.cache
def _library_lacks(index: int) -> str | None:
    """What the library lacks for a GPU; asked once in a process, for every call of an operation wants to know."""
    try:
        if sources.found() is None:
            return f"built of other sources: {_MAKE} again" if sources.stale() else f"not built: {_MAKE}"
        ops()
    except (OSError, RuntimeError) as error:
        return f"the library does not load: {_first_line(error)}"
    return _probed(index)


def _unfit(device: torch.device) -> str | None:
    """What a device lacks, however the library is built."""
    if device.type != "cuda":
        return f"no GPU: {device}"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no NVIDIA GPU that torch can use"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return "compute capability {}.{}: it takes {}.{}".format(*capability, *OLDEST)
    return None


def _probed(index: int) -> str | None:
    try:
        why: str = ops().probe(index)
    except RuntimeError as error:
        return f"the library does not run: {_first_line(error)}"
    if "no kernel image" in why:
        return f"the library has no code for {_architecture(index)}: {_MAKE}"
    return why or None


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _architecture(index: int) -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability(index))


@functools.cache
def ops() -> Any:
    """The operations, ``torch.ops.cramming_kernels``; loaded once.

    Raises:
        RuntimeError: there is no library of these sources, or it is another than its name says.
        OSError: it does not load.
    """
    path = sources.found()
    if path is None:
        raise RuntimeError(f"the compiled kernels are not built: {_MAKE}")
    torch.ops.load_library(str(path))
    made_of = str(torch.ops.cramming_kernels.build_info()).split()[0]
    if made_of != sources.digest():
        raise RuntimeError(f"{path.name} is built of other sources ({made_of}): {_MAKE} again")
    sources.mark_used(path)
    return torch.ops.cramming_kernels


def ensure_built(device: torch.device | str) -> str | None:
    """Build the library for this device where it has none and an nvcc is at hand; why it still cannot be used.

    For those who ask for this backend by name; ``auto`` takes what is there. A library for other GPUs is replaced by
    one for them and this one. One that this process has loaded stays: a library is loaded once.
    """
    device = torch.device(device)
    if _unfit(device) is not None or ops.cache_info().currsize:
        return lacks(device)
    name, failed = _architecture(_index(device)), None
    try:
        if not sources.runs_on(name, sources.architectures()):
            from cramming.kernels.build import build_for
            from cramming.progress import progress_for

            build_for(name, progress_for())
    except (UserError, OSError) as error:
        failed = f"not built: {_first_line(error)}"
    except (RuntimeError, ValueError) as error:
        failed = f"it does not compile: {_first_line(error)}"
    forget()
    why = lacks(device)  # what was there before may do, whatever stands in the way of another
    return failed if failed is not None and why is not None else why
