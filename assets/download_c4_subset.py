"""Fetch the earlier study's published token rows and import them: ``python assets/download_c4_subset.py --help``."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cramming.cli import parse, run_command
from cramming.data.download import check_md5, fetch, from_address, from_record, plain_md5
from cramming.data.published import ARCHIVE, C4_SUBSET, RECORD, Origin, import_rows, imported
from cramming.data.sources.published import PublishedConfig
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.progress import ProgressSink, progress_for
from cramming.text import quantity

_USAGE = f"""\
Fetch the earlier study's published subset of C4 (tokenized, shuffled, 128 tokens a row) and import it as a token store
with its own tokenizer and row order. What was finished stays: after a cut or a kill give the same command again.

  python assets/download_c4_subset.py
  python assets/download_c4_subset.py from=c4-subset-random.tar.bz2 md5=<as the record's page prints it>
  python pretrain_bert.py name=x data=c4_subset_published budget=24

Options (option=value):
  data_dir=outputs/_data     where the store goes, and the archive until it is imported
  max_rows=1000000           only so many rows; then train with data.max_rows=1000000      [all]
  keep_archive=true          leave the archive in <data_dir>/downloads                     [false]
  from=<archive or folder>   one that is here already; it is never deleted
  md5=<32 digits>            its checksum; md5=none to do without                          [from the record]
  url=https://...            the record that lists the archive, or, with md5=, the archive
                             [{RECORD}]
  file={ARCHIVE}
                             the archive's name in the record
  name={C4_SUBSET}      what runs call it: data=published data.name=... for sets of your own"""


@dataclass
class Options:
    """What can be given."""

    data_dir: str = "outputs/_data"
    url: str = RECORD
    file: str = ARCHIVE
    from_: str | None = None
    md5: str | None = None
    name: str = C4_SUBSET
    max_rows: int | None = None
    keep_archive: bool = False


def command(argv: list[str]) -> None:
    """Fetch and import what ``argv`` describes, and say what there is.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``.
    """
    words = [re.sub("^from=", "from_=", word) for word in argv]  # a keyword of Python cannot be a field
    options, rest = parse(words, Options, _USAGE)
    if rest:
        raise UserError(f"{rest[0]!r} is not an option; see --help")
    PublishedConfig(name=options.name, max_rows=options.max_rows).check()
    data_dir, progress = Path(options.data_dir), progress_for()
    store = imported(data_dir, options.name, options.max_rows)
    if store is None:
        source, origin = _here(options, progress) if options.from_ else _fetched(options, data_dir, progress)
        store = import_rows(source, data_dir, options.name, origin, max_rows=options.max_rows, progress=progress)
    if options.from_ is None and not options.keep_archive:
        _downloaded(options, data_dir).unlink(missing_ok=True)
    size = quantity(sum(file.stat().st_size for file in store.folder.iterdir()), "B")
    print(f"{store.folder}: {store.rows:,} sequences of {store.seq_length} tokens, {size}")
    print(f"train on it: python pretrain_bert.py name=x {_words(options, store)}")


def _words(options: Options, store: TokenStore) -> str:
    """What a run has to say to train on the store."""
    words = (
        ["data=c4_subset_published"] if options.name == C4_SUBSET else ["data=published", f"data.name={options.name}"]
    )
    defaults = PublishedConfig()
    found = {"seq_length": store.seq_length, "vocab_size": store.tokenizer.vocab_size, "max_rows": options.max_rows}
    words += [f"data.{key}={value}" for key, value in found.items() if value != getattr(defaults, key)]
    if options.data_dir != Options.data_dir:
        words.append(f"data_dir={options.data_dir}")
    return " ".join(words)


def _downloaded(options: Options, data_dir: Path) -> Path:
    """Where the archive lies between download and import."""
    name = Path(urlsplit(options.url).path).name
    return data_dir / "downloads" / (name if ".tar" in name else options.file)


def _here(options: Options, progress: ProgressSink) -> tuple[Path, Origin]:
    """An archive or folder on this disk."""
    assert options.from_ is not None
    path = Path(options.from_).expanduser()
    if not path.exists():
        raise UserError(f"from={path} does not exist; it takes an archive, or a folder that Dataset.save_to_disk wrote")
    if path.is_dir() or options.md5 == "none":
        if path.is_dir() and options.md5 not in (None, "none"):
            raise UserError(f"md5={options.md5}: a folder has no checksum; leave md5= out")
        return path, Origin(path.name)
    record = None
    if options.md5 is None:
        if path.name != options.file:
            raise UserError(f"from={path}: give md5=<its published checksum>, or md5=none to import it unchecked")
        record = options.url
    md5 = plain_md5(options.md5) if options.md5 is not None else from_record(options.url, options.file).md5
    check_md5(path, md5, progress)
    return path, Origin(path.name, md5, record)


def _fetched(options: Options, data_dir: Path, progress: ProgressSink) -> tuple[Path, Origin]:
    """The archive from its publisher."""
    direct = ".tar" in Path(urlsplit(options.url).path).name
    if direct and options.md5 in (None, "none"):
        raise UserError(f"url={options.url} is an archive: give md5=<its published checksum>")
    if direct:
        remote = from_address(options.url, str(options.md5))
    else:
        remote = from_record(options.url, options.file)
        if options.md5 not in (None, remote.md5) and plain_md5(str(options.md5)) != remote.md5:
            raise UserError(f"md5={options.md5}, but {options.url} lists {options.file} with {remote.md5}")
    path = fetch(remote, data_dir / "downloads", progress)
    return path, Origin(remote.name, remote.md5, None if direct else options.url)


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
