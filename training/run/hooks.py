"""What is evaluated and kept between the steps of a run: held-out losses, samples, distances, snapshots."""

from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator

from attndiff.training.batches import DrawnDataset
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.distances import Distances, in_words
from attndiff.training.evaluation.samples import save_grid, swapped
from attndiff.training.evaluation.validation import validate
from attndiff.training.run.pace import Stopwatch
from attndiff.training.run.progress import Progress
from attndiff.training.state.best import keep_best
from attndiff.training.state.checkpoint import RunState
from attndiff.training.state.length import Length


class EvalHooks:
    """Called after a step whenever the settings under ``log`` say so, and at the end of the run.

    Args:
        accelerator: For the device and the sharing of the work among processes.
        config: The run's settings.
        parts: Its modules and data.
        held_out: Held-out images with their conditions.
        distances: Measures samples, if that is wanted.
        length: Of the run.
        timed: Makes the context in which something of a name is done, and its time noted.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        parts: Parts,
        held_out: DrawnDataset,
        distances: Distances | None,
        length: Length,
        timed: Stopwatch,
    ):
        self.accelerator, self.config, self.parts = accelerator, config, parts
        self.held_out, self.distances, self.length, self.timed = held_out, distances, length, timed

    def due(self, every: int | None, step: int) -> bool:
        """Whether something is to be done after a step; at the end, all that is done at all."""
        return bool(every) and (step % every == 0 or step == self.length.end(step))

    def any_due(self, step: int) -> bool:
        """Whether there is anything to do after a step."""
        log = self.config.log
        intervals = (log.validate_every, log.sample_every, log.evaluate_every, log.snapshot_every)
        return any(self.due(every, step) for every in intervals)

    def run(self, state: RunState, progress: Progress) -> None:
        """Validate, sample, measure and keep averages, whatever is due."""
        log, out, step = self.config.log, Path(self.config.out), state.step
        main = self.accelerator.is_main_process
        if self.due(log.validate_every, step):
            with self.timed("validate"):
                self.validate(state, progress)
        if self.due(log.sample_every, step) and main:
            with self.timed("sample"):
                grid = out / "samples" / f"step_{step:08d}.png"
                save_grid(self.parts, state.ema, log.prompts, log.guidance_scale, grid)
        if self.due(log.evaluate_every, step):
            with self.timed("evaluate"):
                self.measure_distances(state, progress)
        if log.snapshot_every and step % log.snapshot_every == 0 and main:
            state.ema.save_snapshots(out / "snapshots", step)

    def validate(self, state: RunState, progress: Progress) -> None:
        """Log the held-out losses of the raw and averaged weights."""
        data = self.parts.learned.data if self.parts.vae is None else None
        results = {"raw": validate(self.parts.model, self.held_out, self.accelerator, data)}
        for name, weights in state.named().items():
            if name != "raw":
                with swapped(self.parts.model, weights):
                    results[name] = validate(self.parts.model, self.held_out, self.accelerator, data)
        found = {name: result.to_json() for name, result in results.items()}
        if self.parts.model.keeps_best and self.accelerator.is_main_process:
            keep_best(Path(self.config.out), state, found)
        entry = {"step": state.step, "images": state.step * self.config.optim.batch_size}
        progress.write(entry | found)
        progress.say(
            f"step {state.step}: held-out loss " + ", ".join(f"{name} {r.loss:.4f}" for name, r in results.items())
        )
        if self.config.log.tracker:
            scalars = {f"held_out/{name}": r.loss for name, r in results.items()}
            levels = asdict(results["raw"])
            for ratio, error in zip(levels["noise_over_signal"], levels["per_level"], strict=True):
                scalars[f"held_out_x0/noise_{ratio:.2f}"] = error
            self.accelerator.log(scalars, step=state.step)

    def measure_distances(self, state: RunState, progress: Progress) -> None:
        """Log the distances of the averaged weights' samples to held-out images."""
        entry = self.distances.measure(state)
        if self.accelerator.is_main_process:
            progress.write(entry)
            progress.say(in_words(entry))
            if self.config.log.tracker:
                found = {name: m["value"] for name, m in entry["distances"].items() if isinstance(m, dict)}
                self.accelerator.log({f"distances/{name}": value for name, value in found.items()}, step=state.step)
