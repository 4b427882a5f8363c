"""What the fixtures hold, and how the original library (mosaicml-streaming) wrote them; see ``README.md``."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TEXT = {"text": "str"}
MANY = {
    "a_text": "str", "b_bytes": "bytes", "c_int": "int", "d_u8": "uint8", "e_i16": "int16", "f_u32": "uint32",
    "g_i64": "int64", "h_f16": "float16", "i_f32": "float32", "j_f64": "float64", "k_str_int": "str_int",
    "l_str_float": "str_float", "m_json": "json", "n_any": "ndarray", "o_typed": "ndarray:int32",
    "p_shaped": "ndarray:uint16:2,3",
}  # fmt: skip


def texts(n: int) -> list[dict[str, Any]]:
    """Documents of several lengths and scripts, one of them empty."""
    words = ["budget", "größe", "漢字", "\N{SNAKE}", "a\nb", "\0"]
    return [{"text": " ".join(words[(i * k) % len(words)] for k in range(1, i))} for i in range(n)]


def tokens(n: int) -> list[dict[str, Any]]:
    """16 ids each, as the earlier tools' ``--concat_tokens 16`` stored them."""
    return [{"tokens": np.arange(16 * i, 16 * i + 16, dtype=np.int64).tobytes()} for i in range(n)]


def many(n: int) -> list[dict[str, Any]]:
    """A value of every encoding."""
    return [
        {
            "a_text": f"ä{i}", "b_bytes": bytes(range(i)), "c_int": -(10**i), "d_u8": i, "e_i16": -i,
            "f_u32": 2**32 - 1 - i, "g_i64": -(2**63) + i, "h_f16": i / 4, "i_f32": i / 8, "j_f64": i / 3,
            "k_str_int": 10 ** (20 + i), "l_str_float": i / 7, "m_json": {"b": [i, None], "a": "é"},
            "n_any": np.full((1, i + 1), i / 2, np.float32),
            "o_typed": np.arange(300 if i else 2, dtype=np.int32), "p_shaped": np.full((2, 3), i, np.uint16),
        }
        for i in range(n)
    ]  # fmt: skip


#: folder -> columns, samples, options of the writer
FOLDERS: dict[str, tuple[dict[str, str], list[dict[str, Any]], dict[str, Any]]] = {
    "text": (TEXT, texts(12), {"hashes": ["sha1", "xxh64"], "size_limit": 420}),
    "tokens": ({"tokens": "bytes"}, tokens(6), {"hashes": ["md5", "sha256", "xxh3_64"], "size_limit": 800}),
    "many": (MANY, many(3), {"size_limit": None}),
    "zstd": (TEXT, texts(9), {"compression": "zstd", "hashes": ["sha1"], "size_limit": 360}),
    "zstd7": (TEXT, texts(9), {"compression": "zstd:7", "hashes": ["xxh128"]}),
    "gz": (TEXT, texts(9), {"compression": "gz", "hashes": ["sha1"]}),
    "br": (TEXT, texts(9), {"compression": "br", "hashes": ["sha1"], "size_limit": 409}),
    "br4": (TEXT, texts(9), {"compression": "br:4", "hashes": ["sha1"]}),
    "bz2": (TEXT, texts(9), {"compression": "bz2", "hashes": ["sha1"]}),
    "snappy": (TEXT, texts(9), {"compression": "snappy", "hashes": ["blake2b", "sha1"]}),
    "none": (TEXT, [], {"hashes": ["sha1"]}),
}


def write() -> None:
    """Write all of them with the original library."""
    from streaming import MDSWriter

    for name, (columns, samples, options) in FOLDERS.items():
        with MDSWriter(out=str(HERE / name), columns=columns, **options) as writer:
            for sample in samples:
                writer.write(sample)


def write_ours(folder: Path) -> None:
    """Write all of them with this project's writer."""
    from cramming.data.shards.mds_writer import write_mds

    for name, (columns, samples, options) in FOLDERS.items():
        write_mds(folder / name, columns, samples, **options)


def read(folder: Path) -> None:
    """Read all of them with the original library, which checks the first hash there is."""
    from streaming import StreamingDataset

    for name, (columns, samples, options) in FOLDERS.items():
        if not samples:
            continue  # the original library refuses a folder without samples
        algorithm = options.get("hashes", [None])[0]
        dataset = StreamingDataset(local=str(folder / name), shuffle=False, batch_size=1, validate_hash=algorithm)
        assert len(dataset) == len(samples), name
        for found, expected in zip(dataset, samples, strict=True):
            for column in columns:
                assert np.array_equal(found[column], expected[column]), (name, column)
        print(f"{name}: {len(samples)} samples as they were written, hash checked: {algorithm}")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write()
    else:
        {"write_ours": write_ours, "read": read}[sys.argv[1]](Path(sys.argv[2]))
