"""What a person sees of a run, while it goes on and afterwards.

Everything here takes plain dicts and numbers: it knows neither the loop, the engine nor torch. Heavy libraries
(matplotlib, wandb, tensorboard) are imported when they are asked for, so import the module you need:

* ``metrics``: ``metrics.jsonl``, one object a line; cut back to the checkpoint's step when a run resumes.
* ``pace``: tokens/s and the remaining time, with pauses taken out; ``smoothing``: the loss without its noise.
* ``panel``: the live panel, or plain lines where there is no terminal; ``logfile``: log lines above it and ``run.log``.
* ``summary``: ``summary.json`` and the table at the end; ``environment``: versions, machine, git revision.
* ``plot``: ``curves.png``; ``trackers``: W&B and TensorBoard behind one interface; ``config``: their options.
* ``strict_json``: JSON that every reader accepts.
"""
