"""Fetch the study's irreducible losses and convert them: ``python assets/download_irreducible_losses.py --help``."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cramming.cli import parse, run_command
from cramming.config import check_name
from cramming.data.download import check_md5, fetch, from_record, plain_md5
from cramming.data.published import C4_SUBSET, RECORD, imported
from cramming.errors import UserError
from cramming.progress import ProgressSink, progress_for
from efficient_training.irreducible_losses import FOLDER, MANIFEST, IrreducibleLosses
from efficient_training.published_irreducible import ARCHIVE, HELDOUT_FRACTION, REFUSED, Origin, convert

_USAGE = f"""\
Fetch the irreducible losses that the earlier study published of its C4 subset, and convert them for method=rho_loss.
They are numbers in pickles: they are read without running anything. What was finished stays: after a cut or a kill give
the same command again. The token rows must be there first: python assets/download_c4_subset.py

  python assets/download_irreducible_losses.py
  python pretrain_bert.py name=x data=c4_subset_published data.heldout=study data.heldout_fraction={HELDOUT_FRACTION} \\
      method=rho_loss method.rho_loss.irreducible=il_losses_c4 method.rho_loss.foreign_masks=true

Options (option=value):
  name=il_losses_c4          what runs call them: <base_dir>/<name>/{FOLDER}
  base_dir=outputs           where runs live
  data_dir=<base_dir>/_data  where the token rows are, and the archive until it is converted
  keep_archive=true          leave the archive in <data_dir>/downloads                     [false]
  from=<archive or folder>   one that is here already; it is never deleted
  md5=<32 digits>            its checksum; md5=none to do without                          [from the record]
  url=https://...            the record that lists the archive
                             [{RECORD}]
  file={ARCHIVE}      the archive's name in the record
  heldout_fraction={HELDOUT_FRACTION}       of the split they are of"""


@dataclass
class Options:
    """What can be given."""

    name: str = "il_losses_c4"
    base_dir: str = "outputs"
    data_dir: str | None = None
    url: str = RECORD
    file: str = ARCHIVE
    from_: str | None = None
    md5: str | None = None
    keep_archive: bool = False
    heldout_fraction: float = HELDOUT_FRACTION


def command(argv: list[str]) -> None:
    """Fetch and convert what ``argv`` describes, and say what there is.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``.
    """
    words = [re.sub("^from=", "from_=", word) for word in argv]  # a keyword of Python cannot be a field
    options, rest = parse(words, Options, _USAGE)
    if rest:
        raise UserError(f"{rest[0]!r} is not an option; see --help")
    for given in (options.file, Path(options.from_ or "").name):
        if given in REFUSED:
            raise UserError(REFUSED[given])
    if not 0 < options.heldout_fraction < 1:
        raise UserError(f"heldout_fraction={options.heldout_fraction} must lie between 0 and 1; the study's is 0.2")
    target = Path(options.base_dir) / check_name(options.name) / FOLDER
    data_dir = Path(options.data_dir or f"{options.base_dir}/_data")
    progress = progress_for()
    if (target / MANIFEST).is_file():
        array = IrreducibleLosses.described(target)
    else:
        store = imported(data_dir, C4_SUBSET)
        if store is None:
            raise UserError(
                f"the rows these losses are of, {C4_SUBSET}, are not in {data_dir}: fetch them first, with `python "
                f"assets/download_c4_subset.py data_dir={data_dir}`"
            )
        source, origin = _here(options, progress) if options.from_ else _fetched(options, data_dir, progress)
        array = convert(source, store, target, origin, heldout_fraction=options.heldout_fraction, progress=progress)
    if options.from_ is None and not options.keep_archive:
        (data_dir / "downloads" / options.file).unlink(missing_ok=True)
    manifest = array.manifest
    print(
        f"{target}: {manifest['training_rows']:,} irreducible losses, {manifest['mean_loss']:.4f} on average; "
        f"{manifest['rows_without_loss']:,} of them of sequences of which nothing was masked"
    )
    print(
        "use them: python pretrain_bert.py name=x data=c4_subset_published data.heldout=study "
        f"data.heldout_fraction={manifest['heldout_fraction']} method=rho_loss "
        f"method.rho_loss.irreducible={options.name} method.rho_loss.foreign_masks=true"
    )


def _here(options: Options, progress: ProgressSink) -> tuple[Path, Origin]:
    """An archive or folder on this disk."""
    assert options.from_ is not None
    path = Path(options.from_).expanduser()
    if not path.exists():
        raise UserError(f"from={path} does not exist; it takes {ARCHIVE}, or a folder of the files in it")
    if path.is_dir() or options.md5 == "none":
        return path, Origin(path.name)
    if options.md5 is None and path.name != options.file:
        raise UserError(f"from={path}: give md5=<its published checksum>, or md5=none to convert it unchecked")
    record = options.url if options.md5 is None else None
    md5 = plain_md5(options.md5) if options.md5 is not None else from_record(options.url, options.file).md5
    check_md5(path, md5, progress)
    return path, Origin(path.name, md5, record)


def _fetched(options: Options, data_dir: Path, progress: ProgressSink) -> tuple[Path, Origin]:
    """The archive from its publisher, its checksum that of the record."""
    if options.md5 == "none":
        raise UserError("md5=none is for an archive that is here; what is fetched is held against the record")
    remote = from_record(options.url, options.file)
    if options.md5 is not None and plain_md5(options.md5) != remote.md5:
        raise UserError(f"md5={options.md5}, but {options.url} lists {options.file} with {remote.md5}")
    return fetch(remote, data_dir / "downloads", progress), Origin(remote.name, remote.md5, options.url)


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
