"""From a run to a pipeline folder: the weights that do best on held-out images, the others as variants, and a card."""

import json
from pathlib import Path

from accelerate import Accelerator

from attndiff.errors import UserError
from attndiff.progress import progress
from attndiff.training.build import Parts, add_data, build, build_without_data
from attndiff.training.card import write_card
from attndiff.training.config import TrainConfig, make_config
from attndiff.training.evaluation.samples import copy_into, make_pipeline, swapped
from attndiff.training.run.progress import read_log
from attndiff.training.state.averages import PowerEMA, rebuild_average
from attndiff.training.state.best import Best, read_best
from attndiff.training.state.checkpoint import (
    RunState,
    named_learned,
    newest_checkpoint,
    read_checkpoint,
    read_layout,
    read_learned_name,
)
from attndiff.training.state.learned import FOLDER as LEARNED
from attndiff.training.state.learned import read_learned
from attndiff.words import with_words


def best_weights(validation: dict, kept: Best | None = None) -> tuple[str, dict]:
    """Name and validation of the weights with the least held-out loss: ``raw``, an average, or earlier ones.

    Args:
        validation: Last validation entry of the log.
        kept: The best of earlier steps, where a run keeps them.
    """
    found = {name: v for name, v in validation.items() if isinstance(v, dict)}
    if kept is not None:
        found[kept.name] = kept.found
    best = min(found, key=lambda name: found[name]["loss"])
    return best, found[best]


def export_run(config: TrainConfig, parts: Parts, state: RunState, validation: dict, folder: Path) -> Path:
    """Write a pipeline folder: the best weights under the plain names, the rest as variants, and the model card.

    The best are those of an earlier step where a run has kept them and ends with worse ones.

    Args:
        config: The run's settings.
        parts: Its modules.
        state: Its weights and averages.
        validation: Last validation entry of the log.
        folder: Where to write; the run's own folder is the config's ``out``.
    """
    # A student's error as a denoiser says little of its samples; its longest average is what consistency tuning ships.
    weights, kept = state.named(), read_best(Path(config.out), state.step)
    best = f"ema_{max(state.ema.averages):.3f}" if config.distill else best_weights(validation, kept)[0]
    if kept is not None and best == kept.name:
        validation, weights = validation | {best: kept.found}, weights | {best: kept.weights}
    parts.model.eval()
    for name in progress(sorted(weights, key=lambda n: n == best), "Writing weights", unit="file"):
        with swapped(parts.model, weights[name]):
            _save(parts, folder, None if name == best else name.replace("_0.", "_"))
    write_card(config, parts, state, validation, (best, weights[best]), folder)
    return folder


def _save(parts: Parts, folder: Path, variant: str | None) -> None:
    """Save the whole pipeline, or only our components' weights under a variant's name."""
    components = parts.model.components(plain=True)
    if variant is None:
        pipe = make_pipeline(parts)
        if parts.learned.words:
            components["tokenizer"] = with_words(pipe.tokenizer, parts.learned.words)
        pipe.register_modules(**components)
        pipe.save_pretrained(folder)
        parts.model.save_adapter(folder / "adapter")
        return
    for name, module in components.items():
        module.save_pretrained(folder / name, variant=variant)


def export_checkpoint(run: Path, folder: Path, sigma_rel: float | None = None) -> Path:
    """Package the newest whole checkpoint of a run, or an average of any width rebuilt from its snapshots.

    Args:
        run: The run's folder.
        folder: New pipeline folder.
        sigma_rel: Relative width of the average to rebuild; None takes the checkpoint's best weights.

    Raises:
        UserError: If ``run`` is no run, holds no whole checkpoint (or no snapshots), or ``folder`` is in use.
    """
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is not a training run; give the folder named by 'out' in its config.")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose a new folder.")
    config = make_config(json.loads((run / "config.json").read_text(encoding="utf-8")) | {"out": str(run)})
    if sigma_rel is not None:
        return _export_average(config, run, folder, sigma_rel)
    newest, _ = newest_checkpoint(run / "checkpoints")
    if newest is None:
        raise UserError(f"{run} holds no whole checkpoint yet; the first comes after log.checkpoint_every steps.")
    parts = _parts_of(config, run, read_learned_name(newest))
    if parts.images is None and (problem := add_data(config, parts)):
        print(f"{problem}: the card compares no samples with training images")
    state = RunState(parts.model, PowerEMA(parts.model, tuple(config.optim.ema)), [])
    files, step, seconds = read_checkpoint(newest)
    state.restore({**files, "optimizer": {}}, step, seconds)
    parts.model.to(Accelerator().device)
    _, validations = read_log(run / "log.jsonl")
    before = [v for v in validations if v["step"] <= step]
    return export_run(config, parts, state, (before or [{"raw": {"loss": 0.0}}])[-1], folder)


def _export_average(config: TrainConfig, run: Path, folder: Path, sigma_rel: float) -> Path:
    """Package the average of one width."""
    average = rebuild_average(run / "snapshots", sigma_rel)
    parts = _parts_of(config, run, named_learned(run / "checkpoints"))
    copy_into(parts.model, average)
    _save(parts, folder, None)
    return folder


def _parts_of(config: TrainConfig, run: Path, named: str | None) -> Parts:
    """The modules of a run, made from what it learned; only a run from before runs kept that needs its data.

    Args:
        config: The run's settings.
        run: Its folder.
        named: The hash by which its checkpoint names what it learned.

    Raises:
        UserError: If what it learned is missing or changed, or the data of a run that kept nothing have.
    """
    if named or (run / LEARNED).is_dir():
        return build_without_data(config, read_learned(run, named))
    print(f"{run} began before runs kept what they learn from their data: it is learned again, from what they are now")
    parts, newest = build(config, grounds=False), newest_checkpoint(run / "checkpoints")[0]
    then = read_layout(newest) if newest else None
    if then is not None and then.data not in (None, parts.learned.fingerprint):
        raise UserError(
            f"the training images of {run}, or their captions or classes, are not those that it was trained on, and it "
            "kept nothing of what it learned from them; restore them to export it."
        )
    return parts
