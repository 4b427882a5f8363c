"""What users of the earlier systems type -> what to write here; ``docs/migrating.md`` shows the same tables.

Keys are written with dots; ``train/optim_mod``, ``+train.x`` and ``--flag`` are looked up in that form too. A key
stands for its whole subtree unless a longer one is listed. A value names the option to use, or says ``nothing`` and
why; ``(not yet)`` marks what is planned and not here.
"""

from cramming.migration.cramming import CRAMMING
from cramming.migration.extreme import EXTREME
from cramming.migration.mosaic import MOSAIC

REPLACEMENTS: dict[str, str] = {**CRAMMING, **MOSAIC, **EXTREME}

# Options of groups, as typed.
OPTIONS: dict[str, str] = {
    "arch=hf-bert-tiny": "arch=bert_tiny",
    "arch=hf-bert-base": "arch=bert_base",
    "arch=bert-tiny": "arch=bert_small",
    "arch=bert-base": "arch=bert_base",
    "arch=bert-original": "arch=crammed_original",
    "arch=bert-c5": "arch=crammed",
    "arch=crammed-bert": "arch=crammed_2023",
    "arch=bert-large-izsak": "arch=crammed_large",
    "arch=sanitycheck": "arch=bert_tiny",
    "arch=bert-c2": "arch=crammed_c2",
    "arch=bert-c3": "arch=crammed_c3",
    "arch=bert-c4": "arch=crammed_c4",
    "arch=bert-i4": "arch=crammed_i4",
    "arch=crammed-bert-simple": "arch=crammed_simple",
    "arch=crammed-bamboo": "arch=crammed_bamboo",
    "arch=crammed-large-izsak": "arch=crammed_large",
    "data=c4-subset-random": "data=c4_subset, or the published one: data=c4_subset_published",
    "data=c4-subset": "data=c4_subset",
    "data=c4-subset-processed": "data=c4_subset data.clean.max_tokens_per_character=0.25 data.order=sentence_length",
    "data=bookcorpus-wikipedia": "data=bookcorpus_wikipedia",
    "data=sanity-check-1": "data=python_docs",
    "data=sanity-check-2": "data=python_docs",
    "train=bert-o3": "nothing: its values are the defaults",
    "train=bert-o4": "experiment=crammed_2023",
    "train/optim=adam_classic": "train/optim=adam",
    "train/schedule=budget-one-cycle-seconds": "train/schedule=one_cycle",
    "train/schedule=budget-triangle2-seconds": "train/schedule=triangle",
    "train/schedule=linear_decay_with_warmup": "train/schedule=linear train.schedule.warmup=0.06",
    "train/schedule=cosine_with_warmup": "train/schedule=cosine train.schedule.warmup=0.06",
    "train/schedule=constant_with_warmup": "train/schedule=constant train.schedule.warmup=0.06",
    "impl=torch-default": "nothing: there is one implementation",
    "eval=GLUE_sane": "python eval.py name=x eval=glue_sane",
    "eval=SuperGLUE": "python eval.py name=x eval=superglue_sane",
    "budget=steps": "rst=steps budget=N for N optimizer steps",
}


def replacement(key: str) -> str | None:
    """What to write for a key or an option of an earlier system, or None if it is none of theirs.

    Args:
        key: a key as typed, without its value (``train.stacking.enabled``, ``+train.x``, ``train/optim_mod``,
            ``--curve``), or a group with its option (``arch=bert-c5``).
    """
    if "=" in key:
        return OPTIONS.get(key)
    parts = key.lstrip("+~-").replace("/", ".").split(".")
    for length in range(len(parts), 0, -1):
        found = REPLACEMENTS.get(".".join(parts[:length]))
        if found is not None:
            return found
    return None
