"""The benchmark of token stores: what it makes is a store, and a contended rate is no number."""

import json
from pathlib import Path

import pytest

from benchmarks import store
from cramming.errors import UserError

TINY = {"gigabytes": 0.002, "written_mb": 1.0, "vocab_size": 64, "batch_size": 8, "draws": 2, "pairs": 3, "warmup": 1}


def test_it_measures_opening_and_both_ways_of_reading(tmp_path: Path) -> None:
    options = store.Options(**TINY, device="cpu", folder=str(tmp_path))  # type: ignore[arg-type]
    result = json.loads(json.dumps(store.measure(options)))
    assert result["rows"] == 2_000_000 // 256
    assert set(result["tokens_per_s"]) == {"rows", "batches"}
    assert all(len(found["pairs"]) == 3 for found in result["tokens_per_s"].values())
    rate = result["tokens_per_s"]["rows"]["median"]
    assert result["times_gpu"]["rows"] == pytest.approx(rate / options.gpu_tokens_per_s)
    assert list(tmp_path.iterdir()) == []
    result["tokens_per_s"]["rows"]["quartiles"] = [1.0, 1.1]
    result["tokens_per_s"]["batches"]["quartiles"] = [1.0, 2.0]
    lines = store.said(result).splitlines()
    assert any(line.startswith("rows, ") and "times the GPU's" in line for line in lines)
    assert "batches, masked on cpu: contended" in lines


@pytest.mark.parametrize("words", [{"gigabytes": 1e-6}, {"vocab_size": 5}, {"pairs": 2}, {"gpu_tokens_per_s": 0.0}])
def test_wrong_options_are_refused(words: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(words))}="):
        store.Options(**words)  # type: ignore[arg-type]
