"""``make kernels``: what it calls, what it says where it cannot, and, with a compiler at hand, what comes out."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.kernels import build, resources, sources, toolchain
from cramming.kernels.build import Options
from cramming.progress import Silent
from tests.kernels.fake_compiler import fake_nvcc, made_by

REPOSITORY = Path(__file__).resolve().parents[2]
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


def ended_with(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """-> (exit code, lines on stderr) of the command."""
    with pytest.raises(SystemExit) as ended:
        build.run_command(lambda: build.main(argv))
    return int(ended.value.code or 0), capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("archs", [",", '""'])
def test_no_target_at_all_is_refused(archs: str, calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended_with([f"archs={archs}"], capsys)
    assert (code, said) == (
        2,
        ["error: archs= names no target: all, native, or names with commas between (archs=sm_80,sm_90)"],
    )


def test_an_option_without_a_value_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended_with(["archs="], capsys)
    assert (code, len(said)) == (2, 1)
    assert said[0].startswith("error: archs=: ")


def test_a_library_that_does_not_load_is_said_in_one_line(calls: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = ended_with(["archs=sm_90"], capsys)
    assert code == 2
    assert [line for line in said if "rror" in line] == said[-1:]
    assert said[-1].startswith("error: the library is built but does not load: ")
    assert sources.found() is not None


def test_without_a_host_compiler_there_is_one_line(calls: Path, csrc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (csrc / "two.cu").write_text("hostless")
    with pytest.raises(
        UserError, match=r"no C\+\+ compiler that it takes \(gcc: No such file or directory\): install g"
    ):
        build.build(Options(), Silent())
    assert ended_with([], capsys)[0] == 2


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("nvcc fatal   : Cannot find compiler 'cl.exe' in PATH", True),
        ("gcc: error trying to exec 'cc1plus': execvp: No such file or directory", True),
        ("sh: 1: gcc: not found", True),
        ("sh: line 1: g++: command not found", True),
        ("host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 15", True),
        ("one.cu:1:10: fatal error: gcc.h: No such file or directory", False),
        ("one.cu(1): error: identifier not found", False),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_75'", False),
    ],
)
def test_a_missing_host_compiler_is_told_from_a_wrong_source(said: str, lacks: bool) -> None:
    assert toolchain.lacks_host_compiler(f"ptxas info    : 0 bytes gmem\n{said}\n") is lacks


def test_an_nvcc_that_says_something_else_is_quoted(calls: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvcc"
    for body, quoted in (("echo one; echo 'a wrapper'", "a wrapper"), ("true", "it prints nothing")):
        program.write_text(f"#!/bin/sh\n{body}\n")
        with pytest.raises(UserError) as error:
            toolchain.compiler()
        assert str(error.value).endswith(f"which nvcc it is: {quoted}")


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
