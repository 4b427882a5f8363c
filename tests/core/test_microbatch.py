"""``impl.microbatch_size=auto``: what is timed, what is taken, what is remembered, and that no run notices."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memory import MemoryStore, same, trained

from cramming import microbatch
from cramming.build import build_run
from cramming.cli import compose
from cramming.errors import UserError
from cramming.microbatch import Trial, fastest, neighbours, remembered, usual_size
from cramming.resolve import Resolved, resolve
from cramming.train import Run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Machine:
    """A clock that passes move: seconds of a sequence by the size of the pass, and what disturbs them."""

    def __init__(self, sequence_s: dict[int, float], disturbed: Callable[[], float] = lambda: 1.0) -> None:
        self.sequence_s, self.disturbed = sequence_s, disturbed
        self.now_s = 0.0
        self.passes: list[int] = []

    def now(self) -> float:
        return self.now_s

    def probe(self, size: int) -> Callable[[], None]:
        def once() -> None:
            self.passes.append(size)
            self.now_s += size * self.sequence_s[size] * self.disturbed()

        return once


def found(machine: Machine, others: list[int], within_s: float = 60.0) -> Trial:
    return fastest(32, others, machine.probe, within_s=within_s, now=machine.now)


# ---- what is taken ----


@pytest.mark.parametrize(
    ("sequence_s", "size"),
    [
        ({32: 0.010, 16: 0.009, 64: 0.011}, 16),
        ({32: 0.010, 16: 0.012, 64: 0.0095}, 64),
        ({32: 0.010, 16: 0.0095, 64: 0.009, 8: 0.008}, 8),  # the fastest of several
        ({32: 0.010, 16: 0.0098, 64: 0.0099}, 32),  # not by a margin
        ({32: 0.010, 16: 0.010, 64: 0.010}, 32),
    ],
)
def test_another_size_must_be_clearly_faster(sequence_s: dict[int, float], size: int) -> None:
    machine = Machine(sequence_s)
    trial = found(machine, [size for size in sequence_s if size != 32])
    assert trial.size == size
    assert trial.sequence_s == pytest.approx(sequence_s)
    assert machine.passes.count(32) == machine.passes.count(16) + 1 == 11, "in turns"


def test_a_stretch_in_which_everything_is_slow_changes_nothing() -> None:
    slow = iter([1.0] * 8 + [3.0] * 6 + [1.0] * 100)
    assert found(Machine({32: 0.010, 16: 0.0092}, lambda: next(slow)), [16]).size == 16
    slow = iter([1.0] * 8 + [3.0] * 6 + [1.0] * 100)
    assert found(Machine({32: 0.010, 16: 0.0102}, lambda: next(slow)), [16]).size == 32


def test_on_a_machine_that_does_something_else_the_usual_size_stays() -> None:
    """Where timings scatter by factors, sizes that are equally fast are hardly ever told apart, and never wildly."""
    others, wrong = [16, 64, 8, 128, 4], 0
    for seed in range(200):
        draw = random.Random(seed)
        machine = Machine(dict.fromkeys([32, *others], 0.001), lambda draw=draw: draw.choice([1.0, 1.0, 1.3, 2.5]))
        wrong += found(machine, others).size != 32
    assert wrong < 60
    for seed in range(50):
        draw = random.Random(seed)
        slower = {32: 0.001, 16: 0.0012, 64: 0.0012}
        machine = Machine(slower, lambda draw=draw: draw.choice([1.0, 1.0, 1.0, 1.3]))
        assert found(machine, [16, 64]).size == 32


def test_timing_keeps_to_its_time() -> None:
    """What cannot be timed often enough is not tried: first the far ones, then all."""
    sequence_s = {32: 0.01, 16: 0.009, 64: 0.009, 8: 0.008}
    for within_s, tried in ((60.0, {8, 16, 32, 64}), (5.0, {16, 32, 64}), (4.5, {8, 16, 32}), (1.0, {32})):
        machine = Machine(sequence_s)
        trial = found(machine, [16, 64, 8], within_s)
        assert set(machine.passes) == tried, within_s
        assert set(trial.sequence_s) == (tried if len(tried) > 1 else set())
        assert machine.now_s < within_s + 2
    machine = Machine(sequence_s, lambda: 1.0 if len(machine.passes) < 3 else 100.0)
    trial = found(machine, [16, 8], 5.0)
    assert (trial.size, trial.sequence_s) == (32, {}), "the machine came to a halt: too little was timed"


def test_a_size_that_does_not_fit_is_left_out() -> None:
    machine = Machine({32: 0.01, 16: 0.011, 8: 0.009})

    def probe(size: int) -> Callable[[], None]:
        def full() -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        return full if size == 64 else machine.probe(size)

    trial = fastest(32, [16, 64, 8], probe, within_s=60.0, now=machine.now)
    assert trial.size == 8
    assert set(trial.sequence_s) == {8, 16, 32}

    def broken(size: int) -> Callable[[], None]:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fastest(32, [16], lambda size: machine.probe(size) if size == 32 else broken(size), within_s=60.0)


# ---- what is tried ----


@pytest.mark.parametrize(
    ("usual", "whole", "length", "where", "expected"),
    [
        (32, 1536, 128, CPU, [16, 64, 8, 4]),  # four times as many would be 16k tokens
        (32, 1536, 16, CPU, [16, 64, 8, 128, 4]),
        (32, 1536, 512, CPU, [16, 8, 4]),
        (32, 96, 128, CPU, [16, 48, 8, 4]),
        (31, 31, 128, CPU, [1]),
        (1, 1, 128, CPU, []),
        (512, 4096, 128, CUDA, [256, 128, 64]),
    ],
)
def test_neighbours_divide_the_batch(
    usual: int, whole: int, length: int, where: torch.device, expected: list[int]
) -> None:
    assert neighbours(usual, whole, length, where) == expected
    assert all(whole % size == 0 for size in expected)


def test_where_one_begins_is_the_largest_that_fits() -> None:
    assert usual_size(1536, lambda size: True, CPU) == 32
    assert usual_size(96, lambda size: size < 20, CPU) == 16
    assert usual_size(4096, lambda size: size <= 100, CUDA) == 64
    with pytest.raises(UserError, match="one sequence alone does not fit"):
        usual_size(96, lambda size: False, CPU)


# ---- what is remembered ----


def built(folder: Path, *overrides: str) -> tuple[Run, Resolved]:
    """A run as a command builds it."""
    words = [
        "data=local", "data.path=none", "data.seq_length=24", "arch=bert_tiny", "arch.layers=1", "arch.hidden=32",
        "arch.dropout=0.1", "train.batch_size=32", "impl.precision=float32", "impl.threads=1", f"base_dir={folder}",
        "rst=flops", *overrides,
    ]  # fmt: skip
    config = compose(words)
    corpus: Any = MemoryStore(2000)
    return build_run(config, corpus, resolve(config.impl, None), folder)


def test_runs_that_are_short_are_not_kept_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Trial:
        raise AssertionError("timed")

    monkeypatch.setattr(microbatch, "fastest", refuse)
    for budget in ("budget=119s", "rst=steps budget=3"):
        assert built(tmp_path, *budget.split())[1].microbatch_size == 32
    assert not (tmp_path / "_impl").exists()
    with pytest.raises(AssertionError, match="timed"):
        built(tmp_path, "budget=120s")


def test_what_was_found_is_remembered_for_this_setting_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, list[int]]] = []

    def scripted(usual: int, others: list[int], probe: object, **_: object) -> Trial:
        asked.append((usual, others))
        return Trial(8, {8: 0.5, usual: 1.0})

    monkeypatch.setattr(microbatch, "fastest", scripted)
    with caplog.at_level("INFO", logger="cramming"):
        assert built(tmp_path)[1].microbatch_size == 8
    assert asked == [(32, [16, 8, 4])]
    assert "50% less time than 32" in caplog.text
    (file,) = (tmp_path / "_impl").glob("*.json")
    assert built(tmp_path, "budget=1s", "seed=1", "train.optim.lr=1")[1].microbatch_size == 8, "also for a short run"
    assert len(asked) == 1
    for other in ("data.seq_length=16", "train.batch_size=64", "impl.gradient_checkpointing=true", "arch.layers=2"):
        built(tmp_path, other)
    assert len(asked) == 5
    content = json.loads(file.read_text())
    assert (content["microbatch_size"], content["usual"], content["precision"]) == (8, 32, "float32")
    for damage in (b"", b"{}", b"[8]", b'{"microbatch_size": 5}', b'{"microbatch_size": "8"}', b"\xff"):
        file.write_bytes(damage)
        assert built(tmp_path)[1].microbatch_size == 8
        assert json.loads(file.read_text())["sequence_s"] == {"8": 0.5, "32": 1.0}, "measured again"
    assert len(asked) == 5 + 6


def test_too_little_timing_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microbatch, "fastest", lambda usual, *_, **__: Trial(usual))
    assert built(tmp_path)[1].microbatch_size == 32
    assert list((tmp_path / "_impl").glob("*.json")) == []


def test_nothing_is_remembered_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert remembered(tmp_path / "none.json", 8) is None


# ---- no run notices ----


def test_trials_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose size was timed and one that was given it are the same to the last bit, dropout included."""
    real, sizes = microbatch.fastest, list[int]()

    def scripted(usual: int, others: list[int], probe: Any, **_: object) -> Trial:
        """Real passes on a clock of their own, which finds 8 the fastest."""
        machine = Machine({size: 0.01 - 0.001 * (size == 8) for size in (usual, *others)})

        def both(size: int) -> Callable[[], None]:
            work, passing = probe(size), machine.probe(size)
            return lambda: (work(), passing())[1]

        trial = real(usual, others, both, within_s=60.0, now=machine.now)
        sizes.extend(machine.passes)
        return trial

    monkeypatch.setattr(microbatch, "fastest", scripted)
    timed, resolved = built(tmp_path / "timed", "stop_at=0.0001s")
    assert resolved.microbatch_size == 8
    assert set(sizes) == {4, 8, 16, 32}
    assert all(parameter.grad is None for parameter in timed.model.parameters())
    assert (timed.clock.ledger, timed.engine.optimizer.state_dict()["state"]) == ({}, {})
    state = trained(timed).state_dict()
    given, _ = built(tmp_path / "given", "stop_at=0.0001s", "impl.microbatch_size=8")
    assert given.step == 0 < timed.step
    assert same(trained(given).state_dict(), state)
