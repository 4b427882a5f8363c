"""What cleaning did: counted from the parts of a spool, and told in a line."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from cramming.data.cleaning.duplicates import DROPPED, Bits
from cramming.data.cleaning.spool import SAME, part_path, read_part
from cramming.text import quantity

_DUPLICATES = "duplicates"


def tally(work: Path, parts: int, stages: dict[str, dict[str, Any]], comparing_s: float) -> dict[str, Any]:
    """Documents and bytes that each stage saw and removed, and the seconds of one core it took.

    Args:
        work: a spool with ``dropped.bin``.
        stages: ``CleanConfig.stages``.
        comparing_s: what comparing documents with each other took.
    """
    dropped = Bits.read(work / DROPPED)
    documents = text_bytes = passed_characters = kept_documents = kept_bytes = 0
    removed_documents: Counter[str] = Counter()
    removed_bytes: Counter[str] = Counter()
    seconds = defaultdict(float, {_DUPLICATES: comparing_s})
    verdict: str | None = None  # on the document that the part before left unfinished
    for number in range(parts):
        part = read_part(part_path(work, number))
        header = part.header
        for stage, (count, size) in header.removed.items():
            removed_documents[stage] += count
            removed_bytes[stage] += size
        for stage, stage_s in header.seconds.items():
            seconds[stage] += stage_s
        gone = dropped.has(documents + part.numbers.astype("int64"))
        begins = part.numbers >= 0
        kept_documents += int((begins & ~gone).sum())
        kept_bytes += int(part.sizes[~gone].sum())
        removed_documents[_DUPLICATES] += int((begins & gone).sum())
        removed_bytes[_DUPLICATES] += int(part.sizes[begins & gone].sum())
        rest = int(part.sizes[~begins & gone].sum())
        # What is left out of a document's rest was removed by whatever removed its beginning.
        removed_bytes[verdict if verdict in stages else _DUPLICATES] += rest
        documents += header.documents
        text_bytes += header.text_bytes
        passed_characters += header.kept_characters
        verdict = verdict if header.unfinished == SAME else header.unfinished
    report: dict[str, Any] = {"parts": parts, "documents": documents, "text_bytes": text_bytes}
    report |= {"passed_characters": passed_characters, "stages": []}
    for stage, options in stages.items():
        entry = {
            "stage": stage,
            "options": options,
            "seen_documents": documents,
            "seen_bytes": text_bytes,
            "removed_documents": removed_documents[stage],
            "removed_bytes": removed_bytes[stage],
            "core_s": round(seconds[stage], 3),
        }
        report["stages"].append(entry)
        documents -= removed_documents[stage]
        text_bytes -= removed_bytes[stage]
    assert (documents, text_bytes) == (kept_documents, kept_bytes), "documents were lost, or counted twice"
    return report | {"kept_documents": kept_documents, "kept_bytes": kept_bytes}


def summary(report: dict[str, Any]) -> str:
    """A line for the screen."""
    documents = report["documents"]
    removed = ", ".join(f"{entry['stage']} {entry['removed_documents'] / documents:.1%}" for entry in report["stages"])
    share = report["kept_bytes"] / report["text_bytes"]
    return (
        f"cleaning kept {report['kept_documents']:,} of {documents:,} documents, {share:.1%} of "
        f"{quantity(report['text_bytes'], 'B')} of text; removed by {removed} of the documents"
    )


def nothing_left(report: dict[str, Any], what: str) -> str:
    """The message when no document is left."""
    removed = ", ".join(
        f"{entry['stage']} ({' '.join(f'{key}={_written(value)}' for key, value in entry['options'].items())}) "
        f"removed {entry['removed_documents']:,}"
        for entry in report["stages"]
    )
    return (
        f"cleaning leaves nothing of the {report['documents']:,} documents of {what}: {removed}; "
        "relax these options of data.clean, or use other text"
    )


def _written(value: Any) -> str:
    """An option's value as it is typed."""
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)
