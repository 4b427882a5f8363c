"""``python -m cramming.data.convert source=... out=...``: a corpus in shards, from any source of text."""

import sys
from pathlib import Path

from cramming.cli import compose, parse, run_command
from cramming.data.converting.options import ConvertOptions
from cramming.errors import UserError
from cramming.progress import progress_for

_USAGE = """\
Write a corpus in shards, to train on it from any storage: data=mds data.remote=<out>. Goes on after a kill.

  python -m cramming.data.convert source=local data.path=my/texts out=shards splits=[train_small,val]
  python -m cramming.data.convert source=c4 out=s3://bucket/c4 compression=zstd splits=[train,val]
  python -m cramming.data.convert source=c4 out=tokens concat_tokens=128 tokenizer=bert-base-uncased eos_text=[SEP]
  python -m cramming.data.convert check=shards          read everything, compare every checksum
  python -m cramming.data.convert index=my/parquets     list parquet files, so that they can be streamed

source=                 what data= takes, with any data.* option of it; data.mix= for several
out=                    folder or address; each split becomes a folder below it
format=mds              mds, parquet (both: text, or tokens with concat_tokens) or rows (data.seq_length tokens each)
splits=[train,train_small,val]    also val_small; small ones are the first 100,000 and 10,000 samples
val_share=0.0005        of the documents go to val, where the source has no validation split of its own
compression=            zstd, gz, br, bz2 (each also :level) or snappy
hashes=[sha1,xxh64]     of each file, for the index
size_limit=             of a decompressed shard, such as 64MiB
concat_tokens=          join documents as token ids, so many in a sample; needs tokenizer=, and
bos_text= eos_text=     what separates documents
no_wrap=true            what a sample leaves of a document is left out
max_characters=         of each document"""

# Options of other commands' configuration that this one hands on.
_COMPOSED = ("data.", "+data", "++data", "base_dir=", "data_dir=", "arch=")

_TEXTS = ("bos_text=", "eos_text=")  # taken as they are: [SEP] is no list


def command(argv: list[str]) -> None:
    """Convert, check or list, as ``argv`` says.

    Raises:
        UserError: what is wrong with it.
        SystemExit: after ``--help``.
    """
    words = [f"data={word.removeprefix('source=')}" if word.startswith("source=") else word for word in argv]
    composed = [word for word in words if word.startswith(("data=", *_COMPOSED))]
    texts = dict(word.split("=", 1) for word in words if word.startswith(_TEXTS))
    own = [word for word in words if word not in composed and not word.startswith(_TEXTS)]
    options, others = parse(own, ConvertOptions, _USAGE)
    options.bos_text, options.eos_text = texts.get("bos_text"), texts.get("eos_text")
    if others:
        raise UserError(f"{others[0]!r} is not an option: give key=value; --help lists them")
    for given in (options.check, options.index):
        if given is not None and len(argv) > 1:
            raise UserError("check= and index= take no other options; leave those out")
    progress = progress_for()
    # What these need takes longer to import than --help and a wrong option to answer.
    if options.check is not None:
        from cramming.data.converting.checking import check_folder

        said = check_folder(Path(options.check).expanduser(), progress)
    elif options.index is not None:
        from cramming.data.converting.checking import list_parquet

        said = [list_parquet(options.index, progress)]
    else:
        options.check_values()
        if not any(word.startswith(("data=", "data.mix=")) for word in composed):
            raise UserError("source=<what data= takes> is missing: source=local data.path=<your text>, say")
        config = compose(composed)
        from cramming.data.converting.plan import Plan
        from cramming.data.converting.writing import refuse_occupied, write_plan

        assert options.out is not None, "checked before"
        data_dir = Path(config.data_dir)
        refuse_occupied(options.splits, options.out, data_dir)
        said = write_plan(Plan(config.data, options, data_dir, progress), options.out, data_dir, progress)
    print("\n".join(said))


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
