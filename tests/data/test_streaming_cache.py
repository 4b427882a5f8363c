"""The folder of shards of a machine: its limit, what goes first, what stays, and several processes at once."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cramming.data.streaming.cache import ShardCache
from cramming.errors import UserError


def writing(size: int, made: list[str] | None = None, name: str = "") -> Callable[[Path], Path]:
    """What makes a file of so many bytes."""

    def make(work: Path) -> Path:
        if made is not None:
            made.append(name)
        (work / "rows").write_bytes(bytes(size))
        return work / "rows"

    return make


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 350)
    made: list[str] = []

    def use(name: str) -> None:
        cache.obtain(name, 100, 100, writing(100, made, name)).close()

    for age, name in enumerate("abc"):
        use(name)
        os.utime(tmp_path / f"{name}.rows", (age, age))
    use("a")
    use("d")
    assert names(tmp_path) == ["a.rows", "c.rows", "d.rows"], "b was used before all others"
    use("b")
    assert names(tmp_path) == ["a.rows", "b.rows", "d.rows"]
    assert "".join(made) == "abcdb"


def test_what_is_open_stays(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 250, sleep=lambda seconds: None)
    held = cache.obtain("a", 100, 100, writing(100))
    second = cache.obtain("b", 100, 100, writing(100))
    with pytest.raises(UserError, match=r"data\.cache_limit=250 B of .* is held by shards in use, and 100 B more"):
        cache.obtain("c", 100, 100, writing(100))
    assert names(tmp_path) == ["a.rows", "b.rows"]
    second.close()
    cache.obtain("c", 100, 100, writing(100)).close()
    assert names(tmp_path) == ["a.rows", "c.rows"]
    assert held.read() == bytes(100)
    held.close()


def test_room_is_waited_for(tmp_path: Path) -> None:
    """Another gives a shard back: nothing fails."""
    held = ShardCache(tmp_path, 150).obtain("a", 100, 100, writing(100))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            held.close()

    ShardCache(tmp_path, 150, sleep).obtain("b", 100, 100, writing(100)).close()
    assert len(waits) == 3
    assert names(tmp_path) == ["b.rows"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from cramming.data.streaming.cache import ShardCache\n"
        "def make(work):\n    (work / 'half').write_bytes(bytes(50)); os.kill(os.getpid(), 9)\n"
        "ShardCache(Path(sys.argv[1]), 200).obtain('a', 100, 150, make)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120)
    assert names(tmp_path) == ["a.making", "a.work"]
    cache = ShardCache(tmp_path, 200)
    assert cache.size() == 150
    cache.obtain("b", 100, 100, writing(100)).close()
    assert names(tmp_path) == ["b.rows"], "its room was needed"
    (tmp_path / "c.making").touch()
    (tmp_path / "c.work").mkdir()
    (tmp_path / "c.work" / "rows").touch()
    cache.obtain("c", 100, 100, writing(100)).close()
    assert names(tmp_path) == ["b.rows", "c.rows"]


def test_a_file_of_another_size_is_made_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1000)
    (tmp_path / "a.rows").write_bytes(b"cut off")
    with cache.obtain("a", 100, 100, writing(100)) as file:
        assert file.read() == bytes(100)


def test_one_makes_and_others_wait(tmp_path: Path) -> None:
    made: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(work: Path) -> Path:
        begun.set()
        assert go_on.wait(60)
        return writing(100, made, "a")(work)

    threads = [
        threading.Thread(target=lambda: ShardCache(tmp_path, 1000).obtain("a", 100, 100, slow).close())
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert made == ["a"]
    assert names(tmp_path) == ["a.rows"]


def test_processes_share_a_small_cache(tmp_path: Path) -> None:
    """Three of them make, read and give back eight files with room for three: every reader sees whole files."""
    code = (
        "import random, sys; from pathlib import Path; from cramming.data.streaming.cache import ShardCache\n"
        "cache, draw = ShardCache(Path(sys.argv[1]), 3500), random.Random(int(sys.argv[2]))\n"
        "for _ in range(150):\n"
        "    name = draw.randrange(8)\n"
        "    def make(work):\n        (work / 'rows').write_bytes(bytes([name]) * 1000); return work / 'rows'\n"
        "    with cache.obtain(str(name), 1000, 1000, make) as file:\n"
        "        with cache._locked():\n            assert cache.size() <= 3500\n"
        "        assert file.read() == bytes([name]) * 1000\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert ShardCache(tmp_path, 3500).size() <= 3500


def test_a_full_disk_gives_up_what_nobody_uses(tmp_path: Path) -> None:
    """Then it is one line, and what is open is still there."""
    cache = ShardCache(tmp_path, 10_000)
    for name in "ab":
        cache.obtain(name, 100, 100, writing(100)).close()
    held = cache.obtain("c", 100, 100, writing(100))
    tries: list[list[str]] = []

    def full(work: Path) -> Path:
        tries.append([name for name in names(tmp_path) if name.endswith(".rows")])
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return writing(100)(work)

    cache.obtain("d", 100, 100, full).close()
    assert tries == [["a.rows", "b.rows", "c.rows"], ["b.rows", "c.rows"], ["c.rows"]]

    def never(work: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"no space left in data\.cache_dir=.* make room, or set data\.cache_dir"):
        cache.obtain("e", 100, 100, never)
    assert names(tmp_path) == ["c.rows"]
    assert held.read() == bytes(100)
    held.close()
