"""The training loop: Accelerate for devices and precision, everything else in the open.

`Trainer.run` reads as the story of a run; what it calls is one file each.
"""

import copy
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from filelock import FileLock
from torch import nn

from attndiff.errors import Stopped, UserError
from attndiff.training.batches import WORKER_TIMEOUT_S, DrawnDataset, training_loader
from attndiff.training.build import Parts, build
from attndiff.training.config import TrainConfig, make_config
from attndiff.training.evaluation.distances import Distances
from attndiff.training.evaluation.validation import AT_MOST
from attndiff.training.export import export_run
from attndiff.training.latents import FOLDER as LATENTS
from attndiff.training.latents import clear_partial
from attndiff.training.optim import lr_factor, make_optimizers, set_lr
from attndiff.training.parallel import sharding, zero
from attndiff.training.parallel.gradients import Gradients
from attndiff.training.parallel.layout import Spread, smaller
from attndiff.training.run.looks import Looks
from attndiff.training.run.plan import Plan, fit_steps, make_plan
from attndiff.training.run.progress import Progress, read_log
from attndiff.training.run.step import SkippedStep, Stepper, Taken
from attndiff.training.state.averages import PowerEMA
from attndiff.training.state.checkpoint import (
    RunState,
    newest_checkpoint,
    read_checkpoint,
    read_spread,
    save_checkpoint,
)
from attndiff.training.state.learned import learned_digest, write_learned
from attndiff.training.state.resume import (
    adopt_spread,
    check_learned,
    check_run_folder,
    kept_learned,
    newest_of,
    settle_by_stored,
    write_config,
)
from attndiff.training.stopping import StopSignal, kill_workers, locked
from attndiff.training.streams import stream_loader
from attndiff.viewing import loss_curve

MEMORY_LOCK = "memory.lock"


def resolve_precision(config: TrainConfig) -> str:
    """Accelerate's name of the precision; ``auto`` takes bfloat16 where the hardware computes in it."""
    if config.optim.precision != "auto":
        return {"fp32": "no", "bf16": "bf16"}[config.optim.precision]
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the devices and processes, made anew for every run of this Python process.

    Raises:
        UserError: If fewer processes came together than the launcher started.
    """
    AcceleratorState._reset_state()
    # Who shares what out is our own affair (`sharding`, `zero`): Accelerate does so on GPUs only.
    with patch_environment(ACCELERATE_USE_FSDP="false", ACCELERATE_USE_DEEPSPEED="false"):
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=resolve_precision(config),
            log_with=config.log.tracker,
            project_dir=config.out,
        )
    # On CPU, Accelerate can come up as several lone processes, each of which would write the same folder.
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != asked:
        raise UserError(f"the launcher started {asked} processes, but {accelerator.num_processes} came together.")
    return accelerator


def ended_early(error: RuntimeError) -> str | None:
    """Which helper of a run an error says has come to an end, as a sentence; None if it is about something else."""
    text = " ".join(str(error).split())
    if "DataLoader" in text:
        return f"a loader worker died or gave nothing for {WORKER_TIMEOUT_S} s ({text})"
    if isinstance(error, torch.distributed.DistBackendError) or "gloo" in text.lower():
        return "another process of the run came to an end"
    return None


class Trainer:
    """One run of one config.

    Args:
        config: The settings; ``optim.minutes`` becomes ``optim.steps`` here.
        elastic: Whether a run may go on with other processes or micro-batches than it began with: the same images with
            the same noise, and losses that agree within rounding (but for dropout inside the network).

    Raises:
        UserError: If the data, model or output folder do not go together.
    """

    def __init__(self, config: TrainConfig, elastic: bool = False):
        self.config, self.out, self.elastic = config, Path(config.out), elastic
        check_run_folder(self.out)
        self.accelerator = make_accelerator(config)
        if config.optim.deterministic:
            torch.use_deterministic_algorithms(True)
        self.stepper: Stepper | None = None
        self.parts: Parts = build(config, kept_learned(config, self.out), self._held)
        optim, conditioning = config.optim, self.parts.conditioning
        self.train_set = DrawnDataset(
            self.parts.images, conditioning, config.seed, config.condition.dropout, optim.flip
        )
        self.held_out = DrawnDataset(self.parts.validation, conditioning, config.seed)
        world = self.accelerator.num_processes
        data = None if config.data.stream else self.parts.images.fingerprint
        micro_batch = optim.micro_batch or max(1, optim.batch_size // world)
        self.spread = Spread(world, micro_batch, data, sharded=sharding.asked_for(), zero=zero.asked_for())
        if self.spread.shared_out and config.distill:
            raise UserError(
                "distill: a student and its teacher are not shared out; start it without FSDP or DeepSpeed."
            )
        if self.spread.zero:
            zero.zero_stage(optim)
        self.spread.accumulation(optim.batch_size)
        self.parts.model.to(self.accelerator.device)
        self.distances = Distances(config, self.parts, self.accelerator) if config.log.evaluate_every else None

    def plan(self) -> Plan:
        """Count and time a step; settles ``optim.steps`` where minutes were given."""
        plan = self._plan_within_memory()
        if self.config.optim.steps is None:
            fitting = fit_steps(self.config, plan, min(AT_MOST, len(self.held_out)))
            steps = torch.tensor(fitting, device=self.accelerator.device)
            steps = int(self.accelerator.reduce(steps, "mean"))
            values = self.config.model_dump()
            values["optim"] |= {"steps": steps, "minutes": None}
            self.config = make_config(values)
        return plan

    def _plan_within_memory(self) -> Plan:
        """The plan of the largest micro-batch, no larger than asked for, that every process has the memory for."""
        while True:
            plan = None
            try:
                plan = make_plan(self.parts.model, self.train_set, self.config, self.accelerator, self.spread)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            short = torch.tensor(int(plan is None), device=self.accelerator.device)
            if not self.accelerator.reduce(short, "sum").item():
                return plan
            self._lower_micro_batch()

    def _lower_micro_batch(self) -> None:
        before, optim = self.spread, self.config.optim
        micro_batch = smaller(optim.batch_size // before.processes, before.micro_batch)
        self.spread = replace(before, micro_batch=micro_batch, lowered=True)
        clear_device_cache(garbage_collection=True)
        self.accelerator.print(
            f"memory ran out with micro-batches of {before.micro_batch}; going on with {micro_batch}, "
            f"{self.spread.accumulation(optim.batch_size)} to a step."
        )

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
            with locked(self.out) if main else nullcontext(), StopSignal() as stop:
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
        self._write_settings(state)
        progress = self._begin(plan, start)
        self.stepper, skips = self._make_stepper(start), 0
        self.looks = Looks(self.accelerator, self.config, self.parts, self.held_out, self.distances)
        began = time.perf_counter() - state.seconds
        for step in range(start, self.config.optim.steps):
            factor = lr_factor(step, self.config.optim)
            set_lr(state.optimizers, factor)
            try:
                taken = self._step(state, step)
            except SkippedStep as error:
                skips += 1
                self._skip(progress, step, skips, error)
                continue
            skips = 0
            state.step, state.seconds = step + 1, time.perf_counter() - began
            state.ema.update(state.module, step + 1)
            self._after_step(state, progress, taken, state.optimizers[0].param_groups[0]["lr"])
            self._stop_if_asked(stop, state)
        progress.close()
        return self._finish(state)

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
            if self.accelerator.is_main_process:
                clear_partial(self.out / LATENTS)
            self.accelerator.wait_for_everyone()
            yield

    def _found(self) -> Path | None:
        """The checkpoint to go on from, settings and spread taken over; None for a run that begins."""
        stored, say = settle_by_stored(self.config, self.out), self.accelerator.print
        if stored is None:
            return None
        self.config = stored
        newest = newest_of(self.out, say)
        if newest is not None:
            check_learned(newest, self.parts.learned, self.out, say)
            self.spread = adopt_spread(newest, self.spread, self.out, self.elastic, say)
        return newest

    def _prepare(self) -> RunState:
        config = self.config.optim
        module = copy.deepcopy(self.parts.model) if self.spread.sharded else self.parts.model
        if config.compile:
            # One graph a shape: inductor (torch 2.13) fails on a graph for any shape, and by default 8 are the limit.
            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, len(self.parts.images.by_shape()))
            hooked = self.spread.shared_out  # DeepSpeed's hooks break the module's graph, FSDP2's also a block's
            for part in sharding.blocks(module) if hooked else [module]:
                part.compile(fullgraph=not hooked, dynamic=False)
        self.gradients = self._make_gradients(module)
        self.gradients.model.train()
        state = RunState(module, PowerEMA(module, tuple(config.ema)), self.gradients.optimizers, spread=self.spread)
        state.replica = self.parts.model if self.spread.sharded else None
        state.zero = self.gradients if self.spread.zero else None
        return state

    def _make_gradients(self, module: nn.Module) -> Gradients:
        config, spread = self.config.optim, self.spread
        if spread.zero:
            (optimizer,) = make_optimizers(module, config)
            return zero.ZeroGradients(
                module, optimizer, config, spread.micro_batch, self.accelerator.mixed_precision == "bf16"
            )
        place = self.accelerator.device
        model = sharding.shard(module, place) if spread.sharded else self.accelerator.prepare(module)
        return Gradients(self.accelerator, model, make_optimizers(module, config), config.clip)

    def _resume(self, state: RunState, newest: Path) -> int:
        """Restore a checkpoint; the step to go on from."""
        state.restore(*read_checkpoint(newest))
        self.accelerator.print(f"resuming {self.out} at step {state.step}")
        return state.step

    def _write_settings(self, state: RunState) -> None:
        """Store the config and what was learned from the data, which every checkpoint from here on names."""
        if self.accelerator.is_main_process:
            write_config(self.config, self.out)
            if self.parts.learned.digest is None:
                write_learned(self.parts.learned, self.out)
        self.accelerator.wait_for_everyone()
        state.learned = self.parts.learned.digest = learned_digest(self.out)
        if self.config.log.tracker:
            self.accelerator.init_trackers("tracker")

    def _begin(self, plan: Plan, start: int) -> Progress:
        config = self.config
        for line in plan.lines(config, len(self.train_set)) + self.parts.notes:
            self.accelerator.print(line)
        main = self.accelerator.is_main_process
        flops = 3 * plan.forward_flops
        return Progress(config.optim.steps, start, config.optim.batch_size, flops, self.out / "log.jsonl", main)

    def _batches(self, start: int) -> Iterator[dict]:
        """This process's micro-batches from a step on."""
        make_loader = stream_loader if self.config.data.stream else training_loader
        place = self.accelerator.process_index, self.accelerator.num_processes
        accumulation = self.spread.accumulation(self.config.optim.batch_size)
        return iter(make_loader(self.config, self.train_set, accumulation, *place, start))

    def _make_stepper(self, start: int) -> Stepper:
        accumulation = self.spread.accumulation(self.config.optim.batch_size)
        return Stepper(self.accelerator, self.parts, self.config, self.gradients, self._batches(start), accumulation)

    # One step

    def _step(self, state: RunState, step: int) -> Taken:
        """Take a step, with smaller micro-batches from here on if memory runs out.

        Nothing of the step has been taken by then, so that the weights can be saved. Where there are several processes,
        the others wait for the gradients of the one that failed: the run ends and has to be started again.
        """
        while True:
            try:
                return self.stepper.take(state, step)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
            self._lower_micro_batch()
            state.spread = self.spread
            self._save_lowered(state)
            self.stepper = self._make_stepper(step)

    def _save_lowered(self, state: RunState) -> None:
        """Save a checkpoint that says which micro-batch fits; any process may be the one to do so."""
        if self.spread.shared_out:
            raise UserError(
                f"memory ran out in step {state.step + 1}; set optim.micro_batch={self.spread.micro_batch} and add "
                "--elastic to go on from the last checkpoint."
            )
        with FileLock(self.out / MEMORY_LOCK):
            newest, _ = newest_checkpoint(self.out / "checkpoints")
            if newest is None or read_spread(newest) != state.spread:
                save_checkpoint(self.out / "checkpoints", state, self.config.log.keep)
        if self.spread.processes > 1:
            raise UserError(
                f"memory ran out in step {state.step + 1}; everything is saved. Run the same command again, which has "
                f"micro-batches of {self.spread.micro_batch}; torchrun --max-restarts 3 does so by itself, if "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 is set (pytorch issue 135712)."
            )

    def _skip(self, progress: Progress, step: int, skips: int, error: SkippedStep) -> None:
        """Leave weights, moments and averages as they are; stop after too many in a row.

        No checkpoint is written on the way, so that a resumed run counts from the same step.
        """
        progress.write({"step": step + 1, "skipped": str(error)})
        if skips > self.config.optim.max_skips or step + 1 == self.config.optim.steps:
            progress.close()
            raise UserError(
                f"training stopped: {error}; such steps in a row: {skips}. The last checkpoint is whole; "
                f"{error.advice}, and run again with another 'out'."
            )
        progress.say(f"skipped {error}")

    # Between steps

    def _after_step(self, state: RunState, progress: Progress, taken: Taken, lr: float) -> None:
        log, step = self.config.log, state.step
        entry = progress.step(step, taken, lr, store=self.looks.due(log.every, step))
        if entry and log.tracker:
            self.accelerator.log({k: v for k, v in entry.items() if k != "step"}, step=step)
        if self.looks.any_due(step):
            self.looks.take(state.whole(), progress)
            progress.pause()
        if self.looks.due(log.checkpoint_every, step):
            start = time.perf_counter()
            self._save(state)
            progress.write({"step": step, "checkpoint_seconds": round(time.perf_counter() - start, 4)})
            progress.pause()

    def _save(self, state: RunState) -> None:
        save_checkpoint(self.out / "checkpoints", state, self.config.log.keep, self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def _stop_if_asked(self, stop: StopSignal, state: RunState) -> None:
        """Save and raise `Stopped` if any process has had a signal; all of them find out after the same step."""
        asked = torch.tensor(stop.number, device=self.accelerator.device)
        if not self.accelerator.reduce(asked, "sum").item() or state.step == self.config.optim.steps:
            return
        if not self.looks.due(self.config.log.checkpoint_every, state.step):
            self._save(state)
        self._leave()
        number = signal.Signals(stop.number or signal.SIGTERM)
        raise Stopped(f"stopped by {number.name} after step {state.step}; the same command goes on from there.", number)

    def _finish(self, state: RunState) -> Path:
        """Draw the loss curve and write the pipeline folder with the weights that do best on held-out images."""
        state = state.whole()
        if self.accelerator.is_main_process:
            steps, validations = read_log(self.out / "log.jsonl")
            loss_curve(steps, validations, self.out / "loss_curve.png")
            export_run(self.config, self.parts, state, validations[-1], self.out / "pipeline")
        self._leave()
        return self.out / "pipeline"

    def _leave(self) -> None:
        """Wait for all processes, then close the trackers and the process group."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.num_processes > 1:
            # gloo's thread needs the GIL to let go of the barrier just passed, and the end of the group waits for that
            # thread without giving the GIL up (torch 2.13): a deadlock, unless the thread has had time.
            time.sleep(0.5)
        self.accelerator.end_training()
