"""The training loop: Accelerate for devices and precision, everything else in the open.

`Trainer.run` reads as the story of a run; what it calls is one file each.
"""

import copy
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size

from attndiff.clock import Clock, in_words
from attndiff.errors import Stopped, UserError
from attndiff.training.batches import Batch, DrawnDataset, training_loader
from attndiff.training.build import Parts, build
from attndiff.training.conditioning import word_dropout
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.distances import Distances
from attndiff.training.evaluation.validation import AT_MOST
from attndiff.training.export import export_run
from attndiff.training.latents import FOLDER as LATENTS
from attndiff.training.latents import clear_partial
from attndiff.training.optim import lr_factor, set_lr
from attndiff.training.parallel.layout import ParallelLayout, asked_of_launcher
from attndiff.training.parallel.prepare import compile_module, make_gradients
from attndiff.training.parallel.processes import (
    agreed,
    anyone,
    ended_early,
    leave,
    make_accelerator,
    precision_notes,
)
from attndiff.training.parallel.zero import zero_stage
from attndiff.training.run.hooks import EvalHooks
from attndiff.training.run.memory import lowered, plan_within_memory, save_lowered
from attndiff.training.run.pace import Pace, kept_entries
from attndiff.training.run.plan import RunPlan
from attndiff.training.run.progress import Progress, read_log
from attndiff.training.run.step import SkippedStep, Stepper, StepResult
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import RunState, checkpoints, read_checkpoint, save_checkpoint
from attndiff.training.state.learned import learned_digest, write_learned
from attndiff.training.state.length import Length
from attndiff.training.state.resume import (
    adopt_layout,
    check_learned,
    check_run_folder,
    kept_learned,
    newest_of,
    settle_by_stored,
    write_config,
    write_left_out,
)
from attndiff.training.stopping import StopSignal, kill_workers, locked
from attndiff.training.streams import stream_loader
from attndiff.viewing import loss_curve


class Trainer:
    """One run of one config.

    Args:
        config: The settings.
        elastic: Whether a run may go on with other processes or micro-batches than it began with: the same images with
            the same noise, and losses that agree within rounding (but for dropout inside the network).
        clock: For all that is timed.
        kept: Seconds of ``optim.minutes`` that are for what the caller does after the run.
        grounds: Whether the encoder may learn words before step 1, which plans and trials are over too soon for.

    Raises:
        UserError: If the data, model or output folder do not go together.
    """

    def __init__(
        self,
        config: TrainConfig,
        elastic: bool = False,
        clock: Clock = time.perf_counter,
        kept: float = 0.0,
        grounds: bool = True,
    ):
        self.config, self.out, self.elastic = config, Path(config.out), elastic
        self.clock, self.kept = clock, kept
        self.began = clock()  # or when it would have been if the run had not been interrupted
        self.pace: Pace | None = None
        self.overdue = False  # whether the least number of steps has been seen to take more than the time
        check_run_folder(self.out)
        self.accelerator = make_accelerator(config)
        if config.optim.deterministic:
            torch.use_deterministic_algorithms(True)
        self.stepper: Stepper | None = None
        layout = self._lay_out()
        self.begins = not checkpoints(self.out / "checkpoints")
        self.parts: Parts = build(config, kept_learned(config, self.out), self._held, grounds and self.begins)
        optim, conditioning = config.optim, self.parts.conditioning
        self.train_set = DrawnDataset(
            self.parts.images,
            conditioning,
            config.seed,
            config.condition.dropout,
            optim.flip,
            self.parts.make_sample,
            word_dropout(config.condition, self.parts.grounded, len(self.parts.images)),
        )
        self.held_out = DrawnDataset(
            self.parts.validation, conditioning, config.seed, make_sample=self.parts.make_sample
        )
        self.layout = replace(layout, data=None if config.data.stream else self.parts.images.fingerprint)
        self.parts.model.to(self.accelerator.device)
        self.distances = Distances(config, self.parts, self.accelerator) if config.log.evaluate_every else None

    def _lay_out(self) -> ParallelLayout:
        """Who handles what of a batch, of whichever data; raises `UserError` if the settings make that impossible."""
        optim, world = self.config.optim, self.accelerator.num_processes
        micro_batch = optim.micro_batch or max(1, optim.batch_size // world)
        layout = ParallelLayout(
            world, micro_batch, sharded=asked_of_launcher("FSDP"), zero=asked_of_launcher("DEEPSPEED")
        )
        if layout.shared_out and self.config.distill:
            raise UserError(
                "distill: a student and its teacher are not shared out; start it without FSDP or DeepSpeed."
            )
        if layout.zero:
            zero_stage(optim)
        layout.accumulation(optim.batch_size)
        return layout

    def plan(self) -> RunPlan:
        """Count and time a step, and where minutes were given, plan as many as fit into them."""
        place = self.config, self.accelerator, self.layout, self.clock
        plan, self.layout = plan_within_memory(self.parts.model, self.train_set, *place)
        if self.config.optim.steps is None:
            held_out, levels = min(AT_MOST, len(self.held_out)), len(self.parts.model.measured_at())
            chores = plan.chores(self.config, held_out, levels)
            self.pace = Pace(self.config, plan, chores, self.clock, self.began, self.kept)
            plan.steps = agreed(self.accelerator, self.pace.fitting(0))
        return plan

    @property
    def seconds_left(self) -> float | None:
        """Of ``optim.minutes``, those that are kept for the caller among them; None where steps were given."""
        return 60 * self.config.optim.minutes - (self.clock() - self.began) if self.config.optim.minutes else None

    def run(self) -> Path:
        """Train to the end, resuming where an earlier run of the same config stopped.

        Returns:
            The pipeline folder ``out/pipeline``.

        Raises:
            Stopped: If a signal asked for it; a checkpoint holds everything up to then.
            UserError: If another process writes to ``out``, its checkpoints are not this run's, or a loader worker or
                another process of the run came to an end.
        """
        main = self.accelerator.is_main_process
        try:
            # A worker's death is raised wherever the trainer is just then; inside torch's own switch of gradients it
            # would leave them off for all that this process does later.
            with torch.enable_grad(), locked(self.out) if main else nullcontext(), StopSignal() as stop:
                return self._run(stop)
        except RuntimeError as error:
            sentence = ended_early(error)
            if sentence is None:
                raise
            kill_workers()
            raise UserError(f"{sentence}; the same command goes on from the last checkpoint.") from None
        finally:
            if self.stepper is not None:
                self.stepper.close()

    def _run(self, stop: StopSignal) -> Path:
        newest = self._found()
        plan = self.plan()
        state = self._prepare()
        start = self._resume(state, newest) if newest else 0
        entries = [] if self.pace is None else kept_entries(newest, self.out / "log.jsonl")
        self._write_settings(state)
        progress = self._begin(plan, state, entries)
        self.stepper, skips = self._make_stepper(start), 0
        self.hooks = EvalHooks(
            self.accelerator, self.config, self.parts, self.held_out, self.distances, state.length, self._timed
        )
        for step in state.length.steps_from(start):
            set_lr(state.optimizers, lr_factor(step, state.length, self.config.optim))
            try:
                taken = self._step(state, step)
            except SkippedStep as error:
                skips += 1
                self._skip(state, progress, step, skips, error)
                continue
            skips = 0
            state.step, state.seconds = step + 1, self.clock() - self.began
            state.ema.update(state.module, step + 1)
            self._after_step(state, progress, taken, state.optimizers[0].param_groups[0]["lr"])
            self._stop_if_asked(stop, state)
        progress.close()
        return self._finish(state, progress)

    def trial(self, factors: Sequence[float]) -> Iterator[float]:
        """Train from the start, each step at its factor of the full learning rate; nothing is resumed or written.

        Args:
            factors: As many as ``optim.steps``.

        Yields:
            The mean loss of each step's batch.

        Raises:
            SkippedStep: If a loss or gradient is not finite or too large; the step is then not taken.
        """
        state = self._prepare()
        self.stepper = self._make_stepper(0)
        try:
            for step, factor in enumerate(factors):
                set_lr(state.optimizers, factor)
                yield self.stepper.take(state, step).loss
        finally:
            self.stepper.close()

    # Before the first step

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run's folder to write latents: the main process locks it, and the others begin after that."""
        with locked(self.out) if self.accelerator.is_main_process else nullcontext():
            began = self.clock()
            if self.accelerator.is_main_process:
                clear_partial(self.out / LATENTS)
            self.accelerator.wait_for_everyone()
            yield
            self.began += self.clock() - began  # what is kept for every later run is not on this one's time

    def _found(self) -> Path | None:
        """The checkpoint to go on from, settings and layout taken over; None for a run that begins."""
        stored, say = settle_by_stored(self.config, self.out), self.accelerator.print
        if stored is None:
            return None
        self.config = stored
        newest = newest_of(self.out, say)
        if newest is not None:
            check_learned(newest, self.parts.learned, self.out, say)
            self.layout = adopt_layout(newest, self.layout, self.parts.learned, self.out, self.elastic, say)
        return newest

    def _prepare(self) -> RunState:
        config = self.config.optim
        module = copy.deepcopy(self.parts.model) if self.layout.sharded else self.parts.model
        if config.compile:
            compile_module(module, self.layout, len(self.parts.images.by_shape()))
        self.gradients = make_gradients(module, config, self.layout, self.accelerator)
        self.gradients.model.train()
        state = RunState(module, PowerEMA(module, tuple(config.ema)), self.gradients.optimizers, layout=self.layout)
        state.replica = self.parts.model if self.layout.sharded else None
        state.zero = self.gradients if self.layout.zero else None
        state.length = Length([(0, config.steps)], fixed=True) if config.steps else None
        return state

    def _resume(self, state: RunState, newest: Path) -> int:
        """Restore a checkpoint; the step to go on from."""
        state.restore(*read_checkpoint(newest))
        self.began -= state.seconds
        if self.pace is not None:
            self.pace.began = self.began
        self.accelerator.print(f"resuming {self.out} at step {state.step}")
        return state.step

    def _write_settings(self, state: RunState) -> None:
        """Store the config and what was learned from the data, which every checkpoint from here on names."""
        if self.accelerator.is_main_process:
            write_config(self.config, self.out)
            if self.parts.learned.digest is None:
                write_learned(self.parts.learned, self.out)
            write_left_out(self.parts.images.skipped, self.out)
        self.accelerator.wait_for_everyone()
        state.learned = self.parts.learned.digest = learned_digest(self.out)
        if self.config.log.tracker:
            self.accelerator.init_trackers("tracker")

    def _begin(self, plan: RunPlan, state: RunState, entries: list[tuple[int, int]]) -> Progress:
        """Say what is planned, and open the log.

        Args:
            plan: Of the run.
            state: Which has the step to go on from; its length is settled here where minutes were given.
            entries: Of its length, as far as the run has any.
        """
        if self.pace is not None:
            state.length = Length(entries or [(0, plan.steps)])
            plan.steps = state.length.end(state.step)
        notes = self.parts.notes + precision_notes(self.config, self.accelerator.device)
        for line in plan.lines(self.config, len(self.train_set)) + notes:
            self.accelerator.print(line)
        main, optim, log = self.accelerator.is_main_process, self.config.optim, self.out / "log.jsonl"
        flops = 3 * plan.forward_flops
        progress = Progress(plan.steps, state.step, optim.batch_size, flops, log, main, self.clock)
        if self.pace is not None and not entries:
            self._replan(progress, 0, plan.steps)
        return progress

    def _batches(self, start: int) -> Iterator[Batch]:
        """This process's micro-batches from a step on."""
        make_loader = stream_loader if self.config.data.stream else training_loader
        place = self.accelerator.process_index, self.accelerator.num_processes
        accumulation = self.layout.accumulation(self.config.optim.batch_size)
        return iter(make_loader(self.config, self.train_set, accumulation, *place, start))

    def _make_stepper(self, start: int) -> Stepper:
        accumulation = self.layout.accumulation(self.config.optim.batch_size)
        return Stepper(self.accelerator, self.parts, self.config, self.gradients, self._batches(start), accumulation)

    # One step

    def _step(self, state: RunState, step: int) -> StepResult:
        """Take a step, with smaller micro-batches from here on if memory runs out.

        Nothing of the step has been taken by then, so that the weights can be saved.
        """
        while True:
            try:
                return self.stepper.take(state, step)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self.layout = lowered(self.layout, self.config.optim.batch_size, self.accelerator.print)
            state.layout = self.layout
            save_lowered(self.out, state, self.config.log.keep)
            self.stepper = self._make_stepper(step)

    def _skip(self, state: RunState, progress: Progress, step: int, skips: int, error: SkippedStep) -> None:
        """Leave weights, moments and averages as they are; stop after too many in a row.

        No checkpoint is written on the way, so that a resumed run counts from the same step.
        """
        progress.write({"step": step + 1, "skipped": str(error)})
        if skips > self.config.optim.max_skips or step + 1 == state.length.end(step + 1):
            progress.close()
            raise UserError(
                f"training stopped: {error}; such steps in a row: {skips}. The last checkpoint is whole; "
                f"{error.advice}, and run again with another 'out'."
            )
        progress.say(f"skipped {error}")

    # Between steps

    def _after_step(self, state: RunState, progress: Progress, taken: StepResult, lr: float) -> None:
        log, step = self.config.log, state.step
        if self.pace is not None:
            self.pace.stepped(step)
            self._correct(state, progress)
        entry = progress.step(step, taken, lr, store=self.hooks.due(log.every, step))
        if entry and log.tracker:
            self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step)
        if self.hooks.any_due(step):
            self.hooks.run(state.whole(), progress)
            progress.pause()
        if self.hooks.due(log.checkpoint_every, step):
            start = self.clock()
            with self._timed("checkpoint"):
                self._save(state)
            progress.write({"step": step, "checkpoint_seconds": round(self.clock() - start, 4)})
            progress.pause()

    def _timed(self, name: str) -> AbstractContextManager:
        """The context of something that is done between steps, which the time of a run has to hold, too."""
        return nullcontext() if self.pace is None else self.pace.timed(name)

    def _correct(self, state: RunState, progress: Progress) -> None:
        """Plan another number of steps where this one does not fit into the time that was given."""
        length, step = state.length, state.step
        if not self.pace.due(step, length):
            return
        planned = agreed(self.accelerator, self.pace.corrected(step, length) or 0)
        if planned:
            self._replan(progress, step, planned)
            length.add(step, planned)

    def _replan(self, progress: Progress, step: int, planned: int) -> None:
        """Write an entry of the length, and say so where the least number of steps takes more than the time."""
        progress.replan(step, planned, self.pace.used)
        sentence = self.pace.overdue(step, planned)
        if sentence and not self.overdue:
            progress.say(sentence)
        self.overdue = self.overdue or bool(sentence)

    def _save(self, state: RunState) -> None:
        save_checkpoint(self.out / "checkpoints", state, self.config.log.keep, self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def _stop_if_asked(self, stop: StopSignal, state: RunState) -> None:
        """Save and raise `Stopped` if any process has had a signal; all of them find out after the same step."""
        if not anyone(self.accelerator, bool(stop.number)) or state.step == state.length.end(state.step):
            return
        if not self.hooks.due(self.config.log.checkpoint_every, state.step):
            self._save(state)
        leave(self.accelerator)
        number = signal.Signals(stop.number or signal.SIGTERM)
        raise Stopped(f"stopped by {number.name} after step {state.step}; the same command goes on from there.", number)

    def _finish(self, state: RunState, progress: Progress) -> Path:
        """Draw the loss curve and write the pipeline folder with the weights that do best on held-out images."""
        state = state.whole()
        takes = "" if self.pace is None else f": about {in_words(self.pace.seconds_of('package'))}"
        progress.say(f"writing the pipeline folder and its card{takes}")
        if self.accelerator.is_main_process:
            write_left_out(self.parts.images.skipped, self.out)  # with what turned out bad on the way
            steps, validations = read_log(self.out / "log.jsonl")
            loss_curve(steps, validations, self.out / "loss_curve.png")
            export_run(self.config, self.parts, state, validations[-1], self.out / "pipeline")
        leave(self.accelerator)
        return self.out / "pipeline"
