"""What preparing says beforehand, against what it then gives."""

from pathlib import Path

import pytest

from cramming.data import estimate, preparation
from cramming.data.estimate import Estimate
from cramming.data.packing import Packed, pack
from cramming.data.preparation import prepare
from cramming.data.sources.local import LocalConfig
from cramming.data.store import TokenStore


def expected_and_made(
    config: LocalConfig, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Estimate, TokenStore, int]:
    """What is expected, the store, and the most that lay on the disk: the parts and the store together."""
    seen: list[Estimate] = []
    sizes: list[int] = []

    def remembered(*given: object) -> Estimate:
        seen.append(estimate.estimate(*given))  # type: ignore[arg-type]
        return seen[-1]

    def measured(*given: object, **options: object) -> Packed:
        packed = pack(*given, **options)  # type: ignore[arg-type]
        sizes.append(sum(file.stat().st_size for file in data_dir.glob("*.work/**/*.bin")))
        return packed

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "estimate", remembered)
        patch.setattr(preparation, "pack", measured)
        store = prepare(config, data_dir, workers=0)
    return seen[0], store, sizes[0]


@pytest.mark.parametrize("layout", ["packed", "document"])
def test_all_of_a_small_corpus_is_looked_at(
    tmp_path: Path, english: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(english)
    config = LocalConfig(path=str(path), vocab_size=500, seq_length=32, layout=layout)
    expected, store, size = expected_and_made(config, tmp_path / "data", monkeypatch)
    assert expected.tokens == store.manifest["tokens"]
    assert expected.text_bytes == pytest.approx(store.manifest["text_bytes"], rel=0.01)  # white space between documents
    assert expected.rows == pytest.approx(store.rows, abs=1)
    assert expected.store_bytes == pytest.approx(sum(f.stat().st_size for f in store.folder.glob("*.bin")), abs=64)
    assert expected.working_bytes == pytest.approx(size, abs=200)


def test_the_disk_must_hold_whole_blocks_even_of_a_limited_corpus(
    tmp_path: Path, english: str, letters: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(english * 40)
    config = LocalConfig(path=str(path), tokenizer=letters, max_tokens=1000)
    expected, store, size = expected_and_made(config, tmp_path / "data", monkeypatch)
    assert store.manifest["tokens"] == expected.tokens == 1000
    assert size < expected.working_bytes < 4 * size
