"""The compiled submodule: whether it can be used on a device, and its operations.

``torch.ops.cramming_kernels.<name>`` are those of ``csrc/*_bindings.cpp``. Nothing is compiled here unless
``ensure_built`` is asked to.
"""

import functools
import logging
from typing import Any

import torch

from cramming.errors import UserError
from cramming.kernels import sources
from cramming.kernels.toolchain import OLDEST

_log = logging.getLogger(__name__)
_MAKE = "run make kernels"


def lacks(device: torch.device | str) -> str | None:
    """Why the compiled kernels cannot be used on a device; None: they can."""
    device = torch.device(device)
    why = _unfit(device)
    if why is not None:
        return why
    if not ops.cache_info().currsize:  # once it is loaded, sources are not read again: every call of an operation asks
        if sources.found() is None:
            return f"built of other sources: {_MAKE} again" if sources.stale() else f"not built: {_MAKE}"
        try:
            ops()
        except (OSError, RuntimeError) as error:
            return f"the library does not load: {str(error).splitlines()[0]}"
    return _probed(torch.cuda.current_device() if device.index is None else device.index)


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


@functools.cache
def _probed(index: int) -> str | None:
    why: str = ops().probe(index)
    if "no kernel image" in why:
        return f"the library has no code for {_architecture(index)}: {_MAKE}"
    return why or None


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
    return torch.ops.cramming_kernels


def ensure_built(device: torch.device | str) -> str | None:
    """Build the library for this device where there is none and an nvcc is at hand; why it still cannot be used.

    For those who ask for this backend by name; ``auto`` takes what is there.
    """
    device = torch.device(device)
    if _unfit(device) is not None or sources.found() is not None:
        return lacks(device)
    from cramming.kernels.build import Options, build
    from cramming.progress import progress_for

    name = _architecture(torch.cuda.current_device() if device.index is None else device.index)
    _log.warning("kernels: compiling the CUDA submodule for %s, once; make kernels compiles it for all", name)
    try:
        build(Options(archs=name), progress_for())
    except UserError as error:
        return f"not built: {error}"
    except RuntimeError as error:
        return f"it does not compile: {str(error).splitlines()[0]}"
    return lacks(device)
