"""``make kernels``: what it calls, what it says where it cannot, and, with a compiler at hand, what comes out."""

import json
import os
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cramming.errors import UserError
from cramming.kernels import build, cuda, resources, sources, toolchain
from cramming.kernels.build import Options
from cramming.progress import Silent

REPOSITORY = Path(__file__).resolve().parents[2]
# An nvcc that records how it is called and makes files of what it is given.
FAKE = """#!{python}
import sys
words = sys.argv[1:]
if words == ["--version"]:
    print("Cuda compilation tools, release {version}, V{version}.88")
elif words == ["--list-gpu-code"]:
    print("{known}")
else:
    with open("{log}", "a") as log:
        print(*words, sep="\\t", file=log)
    source = words[words.index("-c") + 1] if "-c" in words else ""
    if source and "broken" in open(source).read():
        print(source + "(1): error: broken", file=sys.stderr)
        sys.exit(2)
    if source.endswith(".cu"):
        print("ptxas info    : Compiling entry function 'fake' for 'sm_90'", file=sys.stderr)
        print("ptxas info    : Used 40 registers, used 1 barriers", file=sys.stderr)
    open(words[words.index("-o") + 1], "w").write("made of " + " ".join(words))
"""
# As CUDA 13.0 prints it: a template's instance for two architectures, one with spills and a function not inlined.
PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN12_GLOBAL__N_17productI4bf16Li3EEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN12_GLOBAL__N_17productI4bf16Li3EEEvPKT_
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 4096 bytes smem
ptxas info    : Compile time = 10.0 ms
ptxas info    : Function properties for _Z6helperf
    512 bytes stack frame, 100 bytes spill stores, 100 bytes spill loads
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPKfPfl' for 'sm_90'
ptxas info    : Function properties for _Z3addPKfPfl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers
"""


@pytest.fixture
def csrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small sources in place of ours, and nowhere else that a library or a compiler could be found."""
    folder = tmp_path / "package" / "csrc"
    folder.mkdir(parents=True)
    (folder / "one.cu").write_text("one")
    (folder / "one_bindings.cpp").write_text("binding")
    (folder / "device.h").write_text("header")
    monkeypatch.setattr(sources, "CSRC", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    found = toolchain.candidates
    monkeypatch.setattr(toolchain, "candidates", lambda: (path for path in found() if tmp_path in path.parents))
    return folder


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, csrc: Path) -> Path:
    """A fake nvcc on PATH; the file of its calls, words with tabs between."""
    return fake_nvcc(tmp_path, monkeypatch)


def fake_nvcc(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "13.0", known: str = "sm_80 sm_90 sm_120"
) -> Path:
    """An nvcc that knows some targets, first on PATH."""
    program, log = folder / "bin" / "nvcc", folder / "calls"
    program.parent.mkdir(exist_ok=True)
    program.write_text(FAKE.format(python=sys.executable, version=version, known=known, log=log))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def made_by(log: Path) -> list[list[str]]:
    """The calls so far."""
    return [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []


def test_without_a_compiler_there_is_one_line_and_exit_code_2(
    csrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["build"])
    with pytest.raises(SystemExit) as ended:
        build.run_command(lambda: build.main([]))
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: no nvcc on PATH")
    assert "budget-bert[kernels]" in said[0]


def test_every_source_is_compiled_for_every_target_and_linked(calls: Path, csrc: Path) -> None:
    built = build.build(Options(archs="sm_90,sm_80", jobs=1), Silent())
    assert built.archs == ("sm_80", "sm_90")
    assert built.path == csrc.parent / "lib" / f"cramming_kernels-{sources.digest()}.so"
    assert [usage.registers for usage in built.usages] == [40]
    kernel, binding, link = sorted(made_by(calls), key=lambda words: ("-shared" in words, "-gencode" not in words))
    assert kernel[kernel.index("-c") + 1] == str(csrc / "one.cu")
    codes = [word for before, word in pairwise(kernel) if before == "-gencode"]
    assert codes == ["arch=compute_80,code=sm_80", "arch=compute_90,code=[sm_90,compute_90]"]
    for words in (kernel, binding):
        assert words[words.index("-Werror") + 1] == "all-warnings"
    # Of torch's interface nothing newer than the oldest version this project runs with.
    assert "-DTORCH_TARGET_VERSION=0x020b000000000000" in binding
    assert f'-DCRAMMING_BUILD_INFO="{sources.digest()} nvcc 13.0 sm_80 sm_90"' in binding
    assert "-ltorch_cpu" in link
    assert not [word for word in link if "torch_cuda" in word or "libcuda" in word]


def test_the_oldest_torch_is_the_one_pyproject_names() -> None:
    major, minor = int(sources.TORCH_TARGET[2:4], 16), int(sources.TORCH_TARGET[4:6], 16)
    assert f'"torch>={major}.{minor},<' in (REPOSITORY / "pyproject.toml").read_text()


def test_only_what_has_changed_is_compiled_again(calls: Path, csrc: Path) -> None:
    def compiled() -> list[str]:
        before = len(made_by(calls))
        build.build(Options(jobs=1), Silent())
        return sorted(Path(words[words.index("-c") + 1]).name for words in made_by(calls)[before:] if "-c" in words)

    assert compiled() == ["one.cu", "one_bindings.cpp"]
    assert compiled() == []
    (csrc / "two.cu").write_text("two")
    assert compiled() == ["one_bindings.cpp", "two.cu"]  # bindings hold the digest of all
    (csrc / "device.h").write_text("another header")
    assert compiled() == ["one.cu", "one_bindings.cpp", "two.cu"]
    (csrc / "two.cu").unlink()
    assert compiled() == ["one_bindings.cpp"]
    libraries = list((csrc.parent / "lib").glob("*.so"))
    assert libraries == [sources.found()]
    assert "two.cu" not in json.loads(libraries[0].with_suffix(".json").read_text())["objects"][-1]


def test_a_source_that_does_not_compile_is_named_and_leaves_no_library(calls: Path, csrc: Path) -> None:
    (csrc / "two.cu").write_text("broken")
    with pytest.raises(RuntimeError, match=r"two.cu\(1\): error: broken"):
        build.build(Options(), Silent())
    assert sources.found() is None
    assert not list((csrc.parent / "lib" / "objects").glob("two.cu-*.o"))


def test_targets_an_old_compiler_does_not_know_are_left_out_by_name(
    csrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(tmp_path, monkeypatch, version="12.4", known="sm_80 sm_86 sm_89 sm_90")
    built = build.build(Options(), Silent())
    assert built.archs == ("sm_80", "sm_86", "sm_89", "sm_90")
    assert built.left_out == ("sm_100", "sm_120")
    with pytest.raises(UserError, match=r"nvcc 12.4 .* is too old for sm_120"):
        build.build(Options(archs="sm_120"), Silent())


@pytest.mark.parametrize(
    ("asked", "here", "found"),
    [
        ("all", (), ["sm_80", "sm_90", "sm_120"]),
        ("native", ("sm_90", "sm_90"), ["sm_90"]),
        ("sm_120,sm_80", (), ["sm_80", "sm_120"]),
        ("native", (), "there is no GPU here"),
        ("sm_9", (), "sm_9 is no target; did you mean 'sm_90'"),
        ("sm_75", (), "sm_75 is no target"),
        ("hopper", (), "hopper is no target"),
    ],
)
def test_targets(asked: str, here: tuple[str, ...], found: list[str] | str) -> None:
    nvcc = toolchain.Compiler(Path("nvcc"), "13.0", frozenset({"sm_75", "sm_80", "sm_90", "sm_120"}))
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            toolchain.targets(asked, nvcc, here)
    else:
        assert toolchain.targets(asked, nvcc, here)[0] == found


def test_a_package_that_may_not_be_written_builds_into_the_users_cache(
    calls: Path, csrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert build.build(Options(), Silent()).path.parent == tmp_path / "cache" / "budget_bert" / "kernels"


def test_what_ptxas_says_is_read() -> None:
    product, add = resources.parse(PTXAS)
    assert product[1:] == ("sm_80", 255, 36, 24, 4096)
    assert add == resources.Usage("_Z3addPKfPfl", "sm_90", 14, 0, 0, 0)
    table = resources.table([product, add, add._replace(arch="sm_80", registers=16)])
    assert [list(column.cells) for column in table.columns[1:]] == [["255 +36 /4096", "16"], ["-", "14"]]


def test_names_of_kernels_are_short() -> None:
    short = resources.readable(["_Z3addPKfPfl", "_ZN12_GLOBAL__N_17productI4bf16Li3EEEvPKT_"])
    if "add" not in short.values():
        pytest.skip("no c++filt here")
    assert list(short.values()) == ["add", "product<bf16, 3>"]


def test_what_keeps_the_kernels_from_a_device_is_said(calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.lacks("cpu") == "no GPU: cpu"
    monkeypatch.setattr(cuda, "_unfit", lambda device: None)
    cuda.ops.cache_clear()
    assert cuda.lacks("cuda:0") == "not built: run make kernels"
    build.build(Options(), Silent())
    assert str(cuda.lacks("cuda:0")).startswith("the library does not load: ")  # it is a text file
    (csrc / "one.cu").write_text("one, changed")
    assert cuda.lacks("cuda:0") == "built of other sources: run make kernels again"
    cuda.ops.cache_clear()


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
    assert cuda._probed.__wrapped__(0) == "the library has no code for sm_90: run make kernels"


def test_a_backend_asked_for_by_name_is_built_for_its_gpu_only(
    calls: Path, csrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuda.ensure_built("cpu") == "no GPU: cpu"
    assert made_by(calls) == []
    monkeypatch.setattr(cuda, "_unfit", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    cuda.ops.cache_clear()
    assert str(cuda.ensure_built("cuda:0")).startswith("the library does not load: ")
    codes = {word for words in made_by(calls) for word in words if word.startswith("arch=")}
    assert codes == {"arch=compute_90,code=[sm_90,compute_90]"}
    cuda.ops.cache_clear()


@pytest.mark.full
def test_the_real_thing_compiles_for_every_target_without_a_warning_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About two minutes for each core it has not."""
    try:
        nvcc = toolchain.compiler()
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(sources, "folders", lambda: (tmp_path / "lib", tmp_path / "cache"))
    built = build.build(Options(), Silent())
    assert set(built.archs) | set(built.left_out) == set(toolchain.TARGETS)
    assert {usage.arch for usage in built.usages} == set(built.archs)
    assert nvcc.version == built.compiler
    # In a process of its own: operations are registered once.
    code = f"import torch; torch.ops.load_library({str(built.path)!r}); print(torch.ops.cramming_kernels.build_info())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == [sources.digest(), "nvcc", built.compiler, *built.archs]
