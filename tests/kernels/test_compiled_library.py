"""Where the compiled library is looked for and kept, whom it is built for, and what keeps it from a device."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cramming.errors import UserError
from cramming.kernels import build, cuda, sources
from cramming.kernels.build import Options
from cramming.progress import Silent
from tests.kernels.fake_compiler import look_again, made_by, unwritable_package


def test_a_package_that_may_not_be_written_builds_into_the_users_cache(calls: Path, csrc: Path, tmp_path: Path) -> None:
    unwritable_package(csrc)
    path = build.build(Options(), Silent()).path
    assert path.parent == tmp_path / "cache" / "budget_bert" / "kernels"
    assert sources.found() == path


def no_home() -> Path:
    """As ``Path.home`` where there is neither HOME nor such a user."""
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("homeless", [False, True])
def test_nowhere_to_write_is_a_reason_and_one_line(
    homeless: bool,
    csrc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: Callable[[int, int], None],
) -> None:
    unwritable_package(csrc)
    (tmp_path / "cache").write_text("")
    if homeless:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", no_home)
    gpu(9, 0)
    assert cuda.lacks("cuda:0") == "not built: run make kernels"
    assert str(cuda.ensure_built("cuda:0")).startswith(
        f"not built: nowhere to build the kernels ({csrc.parent / 'lib'}: "
    )
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a folder of yours"):
        build.build(Options(), Silent())


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), ValueError("odd"), RuntimeError("")])
def test_whatever_goes_wrong_is_a_reason(
    error: Exception, calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[int, int], None]
) -> None:
    def fails(*words: object) -> None:
        raise error

    monkeypatch.setattr(build, "_build", fails)
    gpu(9, 0)
    why = str(cuda.ensure_built("cuda:0"))
    assert why.startswith(("not built: the kernels cannot be built in ", "it does not compile: "))
    assert (str(error) or "RuntimeError") in why


def test_what_stands_about_a_library_is_of_that_library(
    calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def links(archs: str) -> int:
        before = len(made_by(calls))
        build.build(Options(archs=archs), Silent())
        return sum("-shared" in words for words in made_by(calls)[before:])

    assert (links("sm_90"), links("sm_90")) == (1, 0)
    library = sources.found()
    assert library is not None
    file = sources.facts_file(library)
    assert sources.architectures() == ["sm_90"]
    file.write_bytes(file.read_bytes()[:20])
    assert sources.architectures() == []
    assert links("sm_90") == 1
    assert sources.architectures() == ["sm_90"]
    with monkeypatch.context() as stopped:

        def stop(path: Path, data: bytes) -> None:
            raise KeyboardInterrupt

        stopped.setattr(build, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            links("sm_80,sm_90")
    assert sources.facts(library) == {}  # not those of the library before
    assert links("sm_90") == 1


def test_in_the_users_cache_only_what_is_old_is_removed(calls: Path, csrc: Path, tmp_path: Path) -> None:
    folder, month = tmp_path / "cache" / "budget_bert" / "kernels", 31 * 86400

    def leave(folder: Path) -> list[Path]:
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        ages = {"cramming_kernels-1.so": 0, "cramming_kernels-2.so": month, "cramming_kernels-2.json": 0}
        ages |= {"cramming_kernels-3.so": month, "cramming_kernels-3.json": month}
        ages |= {"objects/a.cu-1.o": 0, "objects/a.cu-2.o": month}
        for name, age in ages.items():
            (folder / name).write_text("")
            os.utime(folder / name, (time.time() - age,) * 2)
        return [folder / name for name in ages]

    beside = leave(csrc.parent / "lib")
    build.build(Options(), Silent())
    assert not [path for path in beside if path.exists()]
    (csrc.parent / "lib").rename(tmp_path / "elsewhere")
    unwritable_package(csrc)
    cached = leave(folder)
    build.build(Options(), Silent())
    # The second is old but was used of late.
    gone = ["cramming_kernels-3.so", "cramming_kernels-3.json", "a.cu-2.o"]
    assert [path.name for path in cached if not path.exists()] == gone


def test_what_keeps_the_kernels_from_a_device_is_said(calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.lacks("cpu") == "no GPU: cpu"
    monkeypatch.setattr(cuda, "_unfit", lambda device: None)
    assert cuda.lacks("cuda:0") == "not built: run make kernels"
    build.build(Options(), Silent())
    assert str(cuda.lacks("cuda:0")).startswith("the library does not load: ")  # it is a text file
    (csrc / "one.cu").write_text("one, changed")
    look_again()
    assert cuda.lacks("cuda:0") == "built of other sources: run make kernels again"


def test_sources_are_read_once_and_not_in_every_call(
    calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[int, int], None]
) -> None:
    looked = []

    def watch(name: str) -> None:
        really: Callable[[], Any] = getattr(sources, name)

        def look() -> Any:
            looked.append(name)
            return really()

        monkeypatch.setattr(sources, name, look)

    watch("units")
    watch("found")
    for _ in range(3):
        assert cuda.lacks("cuda:0") == "not built: run make kernels"
    assert looked == ["found", "units"]
    cuda.lacks("cuda:1")
    assert looked == ["found", "units", "found"]
    build.build(Options(), Silent())
    assert str(cuda.lacks("cuda:0")).startswith("the library does not load: ")


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert cuda.lacks("cuda:0") == "compute capability 7.5: it takes 8.0"


def test_a_device_without_code_in_the_library_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def probe(self, index: int) -> str:
            return "no kernel image is available for execution on the device"

    monkeypatch.setattr(cuda, "ops", Loaded)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    assert cuda._probed(0) == "the library has no code for sm_90: run make kernels"


def test_a_library_that_fails_on_a_device_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def probe(self, index: int) -> str:
            raise RuntimeError("no device guard\nand more")

    monkeypatch.setattr(cuda, "ops", Loaded)
    assert cuda._probed(0) == "the library does not run: no device guard"


def test_a_backend_asked_for_by_name_is_built_for_its_gpu_only(
    calls: Path, csrc: Path, gpu: Callable[[int, int], None]
) -> None:
    gpu(9, 0)
    assert str(cuda.ensure_built("cuda:0")).startswith("the library does not load: ")
    codes = {word for words in made_by(calls) for word in words if word.startswith("arch=")}
    assert codes == {"arch=compute_90,code=[sm_90,compute_90]"}


def test_nothing_is_built_for_a_processor(calls: Path, csrc: Path) -> None:
    assert cuda.ensure_built("cpu") == "no GPU: cpu"
    assert made_by(calls) == []


def test_gpus_that_share_a_folder_have_one_library_for_all(
    calls: Path, csrc: Path, gpu: Callable[[int, int], None]
) -> None:
    gpu(9, 0)
    cuda.ensure_built("cuda:0")
    gpu(8, 0)
    cuda.ensure_built("cuda:0")
    assert sources.architectures() == ["sm_80", "sm_90"]
    before = len(made_by(calls))
    for capability in ((8, 0), (8, 6), (9, 0), (12, 0)):  # the library runs on all of them
        gpu(*capability)
        assert str(cuda.ensure_built("cuda:0")).startswith("the library does not load: ")
    assert len(made_by(calls)) == before


@pytest.mark.parametrize(
    ("arch", "archs", "runs"),
    [
        ("sm_90", [], False),
        ("sm_90", ["sm_90"], True),
        ("sm_80", ["sm_90"], False),
        ("sm_86", ["sm_80", "sm_120"], True),
        ("sm_80", ["sm_86", "sm_120"], False),
        ("sm_90", ["sm_80", "sm_120"], False),
        ("sm_103", ["sm_80", "sm_100", "sm_120"], True),
        ("sm_120", ["sm_90"], True),  # its intermediate code
    ],
)
def test_what_a_library_runs_on(arch: str, archs: list[str], runs: bool) -> None:
    assert sources.runs_on(arch, archs) is runs


def test_what_another_process_built_meanwhile_is_taken(
    calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[int, int], None]
) -> None:
    gpu(9, 0)
    lock = build.FileLock

    @contextmanager
    def waited_for(path: Path) -> Iterator[None]:
        monkeypatch.setattr(build, "FileLock", lock)
        build.build(Options(archs="sm_80,sm_90"), Silent())  # that of another process, which had the lock before
        calls.unlink()
        yield

    monkeypatch.setattr(build, "FileLock", waited_for)
    cuda.ensure_built("cuda:0")
    assert made_by(calls) == []
    assert sources.architectures() == ["sm_80", "sm_90"]


def test_a_library_that_is_there_does_where_none_can_be_built(
    calls: Path, csrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Callable[[int, int], None]
) -> None:
    build.build(Options(archs="sm_120"), Silent())
    (tmp_path / "bin" / "nvcc").unlink()
    gpu(9, 0)
    assert str(cuda.ensure_built("cuda:0")).startswith("not built: no nvcc on PATH")
    monkeypatch.setattr(cuda, "lacks", lambda device: None)
    assert cuda.ensure_built("cuda:0") is None


def test_the_library_asked_for_last_is_taken(calls: Path, csrc: Path, tmp_path: Path) -> None:
    lib = csrc.parent / "lib"
    beside = build.build(Options(archs="sm_90"), Silent()).path
    lib.rename(tmp_path / "aside")
    unwritable_package(csrc)
    cached = build.build(Options(archs="sm_80,sm_90"), Silent()).path
    lib.unlink()
    (tmp_path / "aside").rename(lib)
    for last, path in ((beside, cached), (cached, beside)):
        os.utime(path, (1e9, 1e9))
        os.utime(last, (2e9, 2e9))
        assert sources.found() == last
    os.utime(beside, (1e9, 1e9))
    os.utime(cached, (2, 2))
    assert build.build(Options(archs="sm_90"), Silent()).compiled == 0
    assert sources.found() == beside
    assert beside.stat().st_mtime > 1e9
