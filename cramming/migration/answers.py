"""Answers that stand for many keys."""

NOT_A_CHOICE = "nothing: chosen for you, it cannot change the result"
FIXED = "nothing: fixed here, as published"
DISTRIBUTED = "torchrun's own flags and variables, or impl.devices=all on one machine"
FINETUNING = "python eval.py name=x eval=glue_sane, with options of its own"
MOSAIC_ARCH = "arch=mosaic, which has them all"
PIPELINE = "python pipeline.py, one file of config/pipeline/ for all stages"
DROPPED = "nothing: no counterpart; it was off or broken there"
