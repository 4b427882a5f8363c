"""Answers that stand for many keys."""

NOT_A_CHOICE = "nothing: chosen for you, it cannot change the result"
FIXED = "nothing: fixed here, as published"
DISTRIBUTED = "torchrun --nproc-per-node=N pretrain_bert.py (not yet)"
FINETUNING = "python eval.py name=x eval=glue_sane (not yet)"
MOSAIC_ARCH = "arch=mosaic, which has them all"
PIPELINE = "python pipeline.py (not yet)"
DROPPED = "nothing: no counterpart; it was off or broken there"
