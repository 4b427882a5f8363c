"""One rank fails or dies: all end, soon, and one line says why."""

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.parallel import meeting_ranks as ranks


@pytest.fixture
def kept() -> TCPStore:
    """A store that outlives ranks, as torchrun's agent keeps one."""
    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)


def test_ranks_meet_and_the_main_one_speaks(tmp_path: Path) -> None:
    first, second = ranks.start(tmp_path, ranks.prints)
    assert (first.code, second.code) == (0, 0)
    assert (first.said, second.said) == ("rank 0 speaks\n", "")
    assert first.complained == second.complained == ""


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (ranks.mistaken_before, "its option is wrong"),
        (ranks.mistaken_all, "the option is wrong"),
        (ranks.mistaken_in_step, "its folder is wrong"),
        (ranks.mistaken_first, "the text is wrong, says 0"),
        (ranks.mistaken_afar, "the disk is full"),
    ],
)
def test_a_mistake_on_any_rank_ends_all_with_one_line(tmp_path: Path, work: Callable[[int], None], line: str) -> None:
    ended = ranks.start(tmp_path, work)
    assert [one.code for one in ended] == [2, 2]
    assert "".join(one.complained for one in ended) == f"error: {line}\n"
    assert not any(one.said for one in ended)


def test_of_a_bug_on_one_rank_the_traceback_is_shown_once(tmp_path: Path) -> None:
    first, second = ranks.start(tmp_path, ranks.breaks)
    assert (first.code, second.code) == (1, 1)
    assert first.complained == ""
    assert second.complained.splitlines()[0] == "Traceback (most recent call last):"
    assert second.complained.splitlines()[-1] == "ZeroDivisionError: a bug"


@pytest.mark.parametrize(("work", "dead"), [(ranks.dies, 1), (ranks.dies_afar, 0)])
def test_a_rank_that_is_killed_is_named_by_another(
    tmp_path: Path, kept: TCPStore, work: Callable[[int], None], dead: int
) -> None:
    ended = ranks.start(tmp_path, work, port=kept.port, TORCHELASTIC_USE_AGENT_STORE="True")
    assert ended[dead].code == -9
    assert ended[1 - dead].code == 1
    named = f"rank {dead} (process {ended[dead].process} on {socket.gethostname()})"
    assert ended[1 - dead].complained == (
        f"error: {named} has died: killed, or out of memory; all ranks end, "
        "the same command goes on from the last checkpoint\n"
    )


def test_a_rank_that_gives_no_sign_of_life_is_given_up(tmp_path: Path) -> None:
    first, second = ranks.start(tmp_path, ranks.freezes, waited_for=[0], CRAMMING_SILENT_S="2")
    assert first.code == 1
    assert f"rank 1 (process {second.process} on" in first.complained
    assert "has given no sign of life for 2 s" in first.complained


def test_a_rank_in_native_code_that_lets_no_thread_run_is_not_taken_for_dead(tmp_path: Path) -> None:
    ended = ranks.start(tmp_path, ranks.holds_the_interpreter)
    assert [one.code for one in ended] == [0, 0]
    assert not any(one.complained for one in ended)


def test_another_attempt_in_the_same_store_knows_nothing_of_the_last(tmp_path: Path, kept: TCPStore) -> None:
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert [one.code for one in ranks.start(tmp_path, ranks.dies, port=kept.port, **agent)] == [1, -9]
    for _ in range(2):
        ended = ranks.start(tmp_path, ranks.prints, port=kept.port, **agent)
        assert [one.code for one in ended] == [0, 0]
        assert not any(one.complained for one in ended)
