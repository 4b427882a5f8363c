"""A run from its folder to its summary: resume, watch, validate, save, end.

``pretrain`` is the whole of the ``pretrain_bert.py`` command. ``Session`` is what the loop calls after every step.
"""

import json
import logging
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cramming import checkpoint, faults, folder, resolve
from cramming.build import Parts, build_method, build_run, check_accounts, split_of
from cramming.config import PretrainConfig
from cramming.data.preparation import prepare
from cramming.evaluation.probes import during as probes
from cramming.exchange import initializing
from cramming.exchange.imported import refuse_imported
from cramming.identity import about
from cramming.interruption import Interrupted, Signals, noted
from cramming.parallel import choosing
from cramming.parallel.agreement import statement
from cramming.parallel.launch import idle, launch, processes
from cramming.parallel.ranks import Ranks, agree, here, joined
from cramming.peak import peak_flops_per_s
from cramming.profiling.profile import NoProfile, profile_of
from cramming.progress import progress_for, share_of
from cramming.recording import metrics
from cramming.recording.config import WandbConfig
from cramming.recording.environment import environment, git_revision
from cramming.recording.logfile import logging_to
from cramming.recording.pace import Pace
from cramming.recording.panel import Header, Unseen, build_display
from cramming.recording.plot import plot_curves
from cramming.recording.summary import summary_table, write_summary
from cramming.recording.trackers import build_trackers
from cramming.saving import mirror as mirrors
from cramming.saving.saver import Saver
from cramming.summing_up import summary_of
from cramming.train import Run, train
from cramming.validation import validate

_log = logging.getLogger(__name__)
_RECENT = 0.98  # weight of the past in the running loss that early stopping looks at


class Ended(Exception):  # noqa: N818 (the end of a run is no error)
    """The run ends before its budget is spent; the reason is for the summary."""


def pretrain(config: PretrainConfig) -> None:
    """Train a run, or go on with it, or say that it is finished.

    Raises:
        UserError: input that cannot be used; nothing that was saved is lost.
        Interrupted: Ctrl-C or SIGTERM, after saving.
        RankFailed: one of the processes that were started here died.
    """
    config.name = config.name or "default"
    if (number := processes(config.impl.devices)) > 1:
        launch(config, number)
        return
    with joined(lambda: statement(config, resolve.device().type)) as ranks:
        _pretrain(config, Path(config.base_dir) / config.name, ranks)


def _pretrain(config: PretrainConfig, run_dir: Path, ranks: Ranks) -> None:
    resolved = resolve.resolve(config.impl, None)  # refuse an impossible precision before any work
    Parts(config, config.arch.vocab_size, torch.device(resolved.device)).check_attention(resolved)
    torch.set_num_threads(resolved.threads)
    check_accounts(config.free, build_method(config.method, config.train.optim))
    choosing.refuse(config)
    if ranks.main:
        refuse_imported(run_dir)
        if config.resume:
            folder.check_same(config, run_dir)  # refuse another configuration before any work
    with logging_to(None):
        if others := idle():
            _log.info(others)
        mirror = mirrors.opened(config, run_dir) if ranks.main else None
        with ranks.main_first():
            data = initializing.data_of(config, run_dir)
            store = prepare(data, Path(config.data_dir), progress=progress_for())
        agree({"data": store.fingerprint, "tokenizer": store.tokenizer.sha256})
        split_of(store, config)  # refuse a corpus smaller than a batch
        probes.refuse(config)
        with ExitStack() as stack:
            if ranks.main:
                stack.enter_context(folder.held(run_dir))
                stack.enter_context(logging_to(run_dir / "run.log"))
                if not config.resume:
                    folder.start_over(run_dir)
                    if mirror is not None:
                        mirror.clear()
                folder.remember(config, run_dir)
            resolved = resolve.resolve(config.impl, resolve.read(run_dir) if ranks.main else None)
            with share_of("measuring this machine's costs") as progress:
                run, resolved = build_run(config, store, resolved, run_dir, progress)
            with Saver(run, run_dir, mirror) as saver:
                Session(run, run_dir, resolved, saver).run_to_the_end()


class Session:
    """Everything around the loop, called after every step.

    Args:
        run: at step 0; the newest whole checkpoint is loaded here.
        run_dir: its folder.
        resolved: how it computes.
        saver: writes and reads its checkpoints.
    """

    def __init__(self, run: Run, run_dir: Path, resolved: resolve.Resolved, saver: Saver) -> None:
        self.run = run
        self._saver = saver
        self.run_dir = run_dir
        self.resolved = resolved
        self.impl = run.config.impl
        self.unit_s = run.config.rst.unit_s
        self.initial = here().told(initializing.recorded(run_dir))  # None: its first weights were drawn
        self.about = about(run) | ({"init_from": self.initial} if self.initial else {})
        run.notes = {
            "elapsed_s": 0.0,  # wall seconds in all, over every process that worked on the run
            "train_wall_s": 0.0,  # of them, in steps
            "device_s": here().world * run.clock.spent_s,  # paid by all ranks, whose number may change on the way
            "sequences": 0,  # trained on
            "tokens": 0,  # in them
            "losses": [0.0, 0],  # sum and number of steps since the last row
            "recent_loss": None,  # running mean, for early stopping
            "validations": {},  # the latest, by step
        }
        self._resume()
        if here().main:  # only now is it known that all fits what was saved: nothing of a run is replaced before
            resolve.write(run_dir, resolved)
            run.stream.store.tokenizer.save(run_dir / "tokenizer")
        self._started_s = time.monotonic() - run.notes["elapsed_s"]
        self._step_began_s = time.monotonic()
        self._spent_s, self._step = run.clock.spent_s, run.step
        run.notes.setdefault("device_s", run.clock.spent_s)  # saved before there were several ranks
        self._shared_s = run.clock.spent_s  # what of it is in there
        self._counted = run.engine.trained
        self._signals = Signals()

    def run_to_the_end(self) -> None:
        """Train what is left, then validate, save, summarise and draw."""
        run = self.run
        if self._finished():
            return
        unit: Any = "steps" if self.unit_s == 1 else "s"
        device = self._device_name()
        self._peak, source = peak_flops_per_s(run.engine.device, self.resolved.precision)
        header = Header(
            str(run.config.name), run.config.arch.name, "+".join(run.config.method) or "none", device,
            run.clock.budget_s, unit, run.clock.stop_at_s, "MFU" if source == "published" else "share of measured peak",
        )  # fmt: skip
        main = here().main
        wandb, tensorboard = (run.config.wandb, self.impl.tensorboard) if main else (WandbConfig(), False)
        trackers = build_trackers(wandb, tensorboard, self.run_dir, str(run.config.name), asdict(run.config))
        summary: dict[str, Any] | None = None
        with ExitStack() as stack:
            for tracker in trackers:
                stack.callback(lambda tracker: tracker.finish(summary), tracker)
            rows: metrics.MetricsLog | metrics.Unwritten = metrics.Unwritten()
            if main:
                rows = metrics.MetricsLog(self.run_dir / "metrics.jsonl")
            stack.enter_context(rows)
            self._metrics = rows
            self._display = stack.enter_context(build_display(header) if main else Unseen())
            self._trackers = trackers
            self._pace = Pace(run.clock.progress)
            self._signals = stack.enter_context(noted())
            self._profile = profile_of(run, self.run_dir, device) if main else NoProfile(self.run_dir)
            stack.callback(self._profile.close)
            if self.initial and here().told(not checkpoint.checkpoints(self.run_dir / "checkpoints")):
                self.save([])  # from here on the run needs the checkpoint it began with no more
            self._step_begins()
            summary = self._finish(self._train(), device)
        if summary:
            print(summary_table(summary))
            print(f"curves: {self.run_dir / 'curves.png'}")

    def _train(self) -> str:
        """Train on, unless the run has ended before; says why it ends."""
        run = self.run
        if "ended" not in run.notes:
            try:
                train(run, self.observe)
            except Ended as ended:
                run.notes["ended"] = str(ended)
        if "ended" in run.notes:
            return str(run.notes["ended"])
        return "budget spent" if run.clock.spent_s >= run.clock.budget_s else f"stop_at={run.config.stop_at} reached"

    def observe(self, run: Run) -> None:
        """After a step: log, validate and save what is due; end the run if it must.

        Raises:
            Ended: a hopeless run.
            Interrupted: a signal arrived; the run is saved.
        """
        run.notes["train_wall_s"] += time.monotonic() - self._step_began_s
        with self._pace.paused():
            self._profile.step_ended(run.step)
        faults.point("step")
        self._display.tick(run.step, run.clock.progress)
        if self._account():  # else a method has deferred the step, and nothing is due before it is taken
            before, self._spent_s = self._spent_s, run.clock.spent_s
            row: dict[str, Any] = {}
            if not run.clock.exhausted:  # the last row is written, with a validation, when the run ends
                if self._crossed(self.impl.validate_every_h, before):
                    row = self._validated()
                if row or run.step % self.impl.log_every_steps == 0:
                    self._write_row(row)
            marks = [hour for hour in self.impl.keep_at_h if before < hour * self.unit_s <= run.clock.spent_s]
            every = self.impl.save_every_steps
            if marks or (every and run.step % every == 0) or self._crossed(self.impl.save_every_h, before):
                self.save(marks)
        if number := here().largest(self._signals.number or 0):  # every rank ends where one of them is to
            self.save([])
            self._saver.wait()
            if here().main:
                print(f"saved at step {run.step}; the same command again goes on from there")
            raise Interrupted(128 + number)
        self._stop_if_hopeless()
        self._step_begins()

    def save(self, marks: list[float]) -> None:
        """Write a checkpoint, kept for the hour marks given."""
        run = self.run
        with self._pace.paused():
            run.notes["elapsed_s"] = time.monotonic() - self._started_s
            run.notes["device_s"] += here().world * (run.clock.spent_s - self._shared_s)
            self._shared_s = run.clock.spent_s
            self._metrics.sync()
            about = {**self.about, "spent_s": run.clock.spent_s, "elapsed_s": run.notes["elapsed_s"]}
            about["device_hours"] = run.notes["device_s"] / 3600 if self.unit_s != 1 else None
            self._saver.save(about, marks)

    def _resume(self) -> None:
        found = self._saver.resume(self.about)
        if found:
            _log.info("going on from step %d, %.1f %% of the budget", self.run.step, 100 * self.run.clock.progress)
        if not here().main:
            return
        # The last step's row comes with its validation: one that a kill kept from the checkpoint is written again.
        again = self.run.clock.exhausted and str(self.run.step) not in self.run.notes["validations"]
        metrics.truncate_after(self.run_dir / "metrics.jsonl", self.run.step - again if found else None)

    def _finished(self) -> bool:
        run = self.run
        reason = run.notes.get("ended")
        done = run.clock.exhausted or reason
        if not here().told(bool(done and self._summarised_step() == run.step)):
            return False
        if not here().main:
            return True
        if reason is None and run.clock.spent_s < run.clock.budget_s:
            way_on = f"it has reached stop_at={run.config.stop_at}: leave that out, or raise it, to go on"
        else:
            way_on = "it is finished; resume=false starts it over, from_run= repeats it under another name"
        print(f"{run.config.name} is at step {run.step}, {run.clock.progress:.1%} of its budget: {way_on}")
        return True

    def _summarised_step(self) -> int | None:
        try:
            return int(json.loads((self.run_dir / "summary.json").read_text())["steps"])
        except (OSError, ValueError, KeyError):
            return None

    def _finish(self, reason: str, device: str) -> dict[str, Any]:
        """Validate, save, write the summary and the plot. Repeating it changes nothing."""
        run = self.run
        if str(run.step) not in run.notes["validations"]:
            self._write_row(self._validated())
        self.save([hour for hour in self.impl.keep_at_h if hour * self.unit_s == run.clock.spent_s])
        self._saver.wait()
        reading = here().said_by_each(run.stream.store.about_reading())
        if not here().main:
            return {}
        rows = metrics.read(self.run_dir / "metrics.jsonl")
        unit: Any = "steps" if self.unit_s == 1 else "s"
        profile = self._profile.finish()
        summary = {
            **summary_of(run, self.resolved, rows, unit, reading),
            "end_reason": reason,
            **{key: self.about[key] for key in ("data_fingerprint", "tokenizer_sha256")},
            **({"init_from": self.initial} if self.initial else {}),
            **({"profile": profile} if profile else {}),
            "git_revision": git_revision(),
            "environment": environment(device),
        }
        plot_curves(rows, self.run_dir / "curves.png", str(run.config.name), unit)
        write_summary(self.run_dir / "summary.json", summary)  # last: a summary of this step says that all is there
        return summary

    def _account(self) -> bool:
        """Add the batch to what the next row, the pace and early stopping will say; whether a step was taken."""
        notes, engine = self.run.notes, self.run.engine
        trained = engine.trained
        tokens = (trained - self._counted) * self.run.stream.length
        notes["sequences"] += trained - self._counted
        notes["tokens"] += tokens
        self._pace.advance(tokens, self.run.clock.progress)
        self._counted = trained
        stepped, self._step = self.run.step > self._step, self.run.step
        if stepped and engine.loss == engine.loss:
            notes["losses"] = [notes["losses"][0] + engine.loss, notes["losses"][1] + 1]
            recent = notes["recent_loss"]
            notes["recent_loss"] = engine.loss if recent is None else _RECENT * recent + (1 - _RECENT) * engine.loss
        return stepped

    def _write_row(self, more: dict[str, Any]) -> None:
        run, notes = self.run, self.run.notes
        total, steps = notes["losses"]
        rate = self._pace.tokens_per_s()
        length = run.stream.length
        flops = 3 * run.model.flops(length, run.stream.slots, len(run.model.active_layers))
        row = {
            "step": run.step,
            "progress": run.clock.progress,
            "loss": total / steps if steps else None,
            "lr": run.engine.optimizer.param_groups[0]["lr"],
            "grad_norm": run.engine.grad_norm,
            "spent_s": run.clock.spent_s,
            "elapsed_s": time.monotonic() - self._started_s,
            "tokens_per_s": rate,
            "mfu": flops * rate / length / self._peak / here().world if rate else None,
            "layers": len(run.model.active_layers),
            "batch_size": run.batch_size(run.clock.progress),
            **run.method.columns(),
            **more,
        }
        notes["losses"] = [0.0, 0]
        self._metrics.append(row)
        self._display.update(row, self._pace.remaining_s(self._end_progress()))
        for tracker in self._trackers:
            tracker.log(row)

    def _validated(self) -> dict[str, Any]:
        with self._pace.paused():
            result = validate(self.run, limit=self.impl.validate_sequences)
            asked = probes.probed(self.run, self.run_dir)
        self.run.notes["validations"] = {str(self.run.step): None if result is None else asdict(result)}
        if result is None:
            return asked
        return {"validation_loss": result.loss, "validation_accuracy": result.accuracy, **asked}

    def _crossed(self, every_h: float | None, before_s: float) -> bool:
        """Whether the step crossed a multiple of so many hours (or steps, where the clock counts them)."""
        if every_h is None:
            return False
        every_s = every_h * self.unit_s
        return int(self.run.clock.spent_s // every_s) > int(before_s // every_s)

    def _stop_if_hopeless(self) -> None:
        early, recent = self.run.config.train.early_stop, self.run.notes["recent_loss"]
        if early.after_h is None or early.above_loss is None or recent is None:
            return
        if self.run.clock.spent_s > early.after_h * self.unit_s and recent > early.above_loss:
            raise Ended(f"early stop: loss {recent:.3f} above {early.above_loss} after {early.after_h:g} h")

    def _step_begins(self) -> None:
        """Validation, saving and logging are not charged, under a clock that reads the wall too."""
        self._profile.step_begins()
        self._step_began_s = time.monotonic()
        self.run.clock.restart()

    def _end_progress(self) -> float:
        stop_at_s = self.run.clock.stop_at_s
        return 1.0 if stop_at_s is None else min(1.0, stop_at_s / self.run.clock.budget_s)

    def _device_name(self) -> str:
        return torch.cuda.get_device_name() if self.run.engine.device.type == "cuda" else "cpu"
