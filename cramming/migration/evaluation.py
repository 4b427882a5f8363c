"""What users of the earlier systems type to fine-tune -> what to write for ``eval.py``; ``docs/migrating.md`` shows it.

In this order of the systems: No Train No Gain and Cramming (``eval.py``), MosaicBERT and M2-BERT (``glue.py``,
``sequence_classification.py``), ExtremeBERT (``run_glue.py``).
"""

from cramming.migration import replacement
from cramming.migration.answers import DROPPED, NOT_A_CHOICE

_SHUFFLED = "nothing: training rows are always shuffled"

# Names of suites that are taken as they are typed.
SUITES: dict[str, str] = {
    "GLUE_sane": "glue_sane",
    "SuperGLUE": "superglue_sane",
    "superGLUE": "superglue_sane",
    "SuperGLUE_sane": "superglue_sane",
    "GLUEmosbach": "glue_mosbach",
}

KEYS: dict[str, str] = {
    "eval.optim.lr": "eval.lr",
    "eval.optim.betas": "eval.betas",
    "eval.optim.eps": "eval.eps",
    "eval.optim.weight_decay": "eval.weight_decay",
    "eval.optim.type": "eval.optimizer",
    "eval.optim.amsgrad": DROPPED,
    "eval.optim": "eval.optimizer",
    "eval.optim_mod": DROPPED,
    "eval.scheduler": "eval.schedule",
    "eval.warmup_steps": "eval.warmup",
    "eval.cooldown_steps": DROPPED,
    "eval.steps": "eval.max_steps",
    "eval.max_seq_length": "eval.max_length",
    "eval.gradient_clipping": "eval.clip_norm",
    "eval.limited_decay_keys": "eval.decay_all",
    "eval.batch_size_ramp": DROPPED,
    "eval.testing.batch_size": NOT_A_CHOICE,
    "eval.testing": NOT_A_CHOICE,
    "eval.checkpoint": "checkpoint",
    "eval.model_pth": "checkpoint",
    "eval.path": "eval.data_dir",
    "eval.metrics_to_average": "eval.average.of",
    "eval.evaluation_set": "nothing: the validation split of each task is scored",
    "eval.eval_in_train_mode": DROPPED,
    "eval.arch_modifications.classification_head.pooler": "eval.pooler (zero_index: first, avg: mean)",
    "eval.arch_modifications.classification_head.head_dropout": "eval.dropout",
    "eval.arch_modifications": "eval.pooler and eval.dropout; the checkpoint says the rest",
    "impl.shuffle_in_dataloader": _SHUFFLED,
    "wandb_name": "name",
    "dryrun": "eval.max_steps=2",
    "parallel": "impl.jobs",
    "default_seed": "seed",
    "tasks": "eval.tasks, and eval.per_task.<task>.<option>",
    "starting_checkpoint_load_path": "checkpoint",
    "local_pretrain_checkpoint_folder": "checkpoint",
    "load_path": "checkpoint",
    "save_finetune_checkpoint_prefix": "eval.save_models",
    "save_finetune_checkpoint_folder": "eval.save_models",
    "max_duration": "eval.epochs",
    "model.pool_all": "eval.pooler=mean",
    "model_name_or_path": "checkpoint",
    "task_name": "eval.tasks",
    "train_file": "eval.train_file",
    "validation_file": "eval.validation_file",
    "test_file": "eval.test_file",
    "max_seq_length": "eval.max_length",
    "learning_rate": "eval.lr",
    "num_train_epochs": "eval.epochs",
    "per_device_train_batch_size": "eval.batch_size",
    "lr_scheduler_type": "eval.schedule",
    "warmup_proportion": "eval.warmup",
    "early_stopping_patience": "eval.patience",
    "eval_steps": "eval.evaluate_every_steps",
    "group_name": "wandb.group",
    "project_name": "wandb.project",
}


def suite(option: str) -> str:
    """A suite by the name that an earlier system gave it, or ``option`` as it is."""
    return SUITES.get(option, option)


def instead(key: str) -> str | None:
    """What to write in ``eval.py`` for a key or a suite of an earlier system, or None if it is none of theirs."""
    group, equals, option = key.partition("=")
    if equals:
        return _of_suite(option) if group == "eval" else None
    parts = key.lstrip("+~-").replace("/", ".").split(".")
    for length in range(len(parts), 0, -1):
        found = KEYS.get(".".join(parts[:length]))
        if found is not None:
            return found
    return replacement(key) if parts[0] in ("impl", "wandb") else None


def _of_suite(option: str) -> str | None:
    from cramming.evaluation.tasks import registry  # it knows every task's rows, which --help does not ask for

    return f"eval=glue_sane eval.tasks=[{option}]" if option in registry.TASKS else None
