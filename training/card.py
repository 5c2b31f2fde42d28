"""The model card: what a run was made of and came to, measured or counted, never typed in."""

import math
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from huggingface_hub import ModelCardData
from PIL import Image

import attndiff
from attndiff.alpha import has_alpha, premultiplied
from attndiff.data.columns import IMAGE
from attndiff.data.pixels.values import ValueRange
from attndiff.data.subset import spread_over
from attndiff.drawn import save_picture
from attndiff.lens.pictures import attention_picture
from attndiff.metrics.grounds import on_white
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.neighbours import nearest_images, neighbour_sheet
from attndiff.progress import SETTINGS, progress
from attndiff.tasks.task import GENERATE, nothing
from attndiff.training.batches import DrawnDataset
from attndiff.training.build import Parts
from attndiff.training.config import TrainConfig
from attndiff.training.evaluation.samples import grid_prompts, make_pipeline, sample_row, swapped, written_of
from attndiff.training.evaluation.validation import validate
from attndiff.training.latents import images_of, vae_factor
from attndiff.training.settings.plain_yaml import write_yaml
from attndiff.training.state.checkpoint import RunState
from attndiff.viewing import as_picture, window_of

TEMPLATE = Path(__file__).parent / "card_template.md"
REFERENCE = 5000  # training images at most among which nearest ones are looked for
COMPARED = 32  # pixels a side at which they are compared


def write_card(
    config: TrainConfig,
    parts: Parts,
    state: RunState,
    validation: dict,
    chosen: tuple[str, dict[str, torch.Tensor]],
    folder: Path,
) -> Path:
    """Write ``folder/README.md`` and the pictures it shows.

    Args:
        config: The run's settings.
        parts: Its modules and data.
        state: Its weights, averages, steps and seconds.
        validation: Last validation entry of the log.
        chosen: Name of the weights that the pipeline opens with, a key of ``validation``, and these weights.
        folder: The pipeline folder.

    Returns:
        The card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = Path(config.out)
    grids, (best, weights) = sorted((run / "samples").glob("*.png")), chosen
    with swapped(parts.model, weights):
        memory = _memory(config, parts, validation.get(best, {}))
        neighbours = _neighbours(config, parts, folder / "neighbours.png")
        attention = _attention(config, parts, folder / "attention.png")
    if grids:
        shutil.copyfile(grids[-1], folder / "grid.png")
    context = {
        **_words(config, parts, state, best),
        "best": best,
        "grid": grids[-1].stem.removeprefix("step_").lstrip("0") if grids else None,
        "curve": _copied(run / "loss_curve.png", folder / "loss_curve.png"),
        "data": _data(config, parts),
        "notes": parts.notes,
        "training": _training(config, parts, state),
        "config": write_yaml(_without_places(config.model_dump(mode="json"))).strip(),
        "losses": _losses(validation, parts.model.unit),
        "writes": parts.task.makes == "captions",
        "student": _student(config),
        "memory": memory,
        "neighbours": neighbours,
        "without_data": parts.without_data,
        "attention": attention,
    }
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    card = folder / "README.md"
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    card.write_text(template.render(context) + "\n", encoding="utf-8")
    return card


# What the card says


def _words(config: TrainConfig, parts: Parts, state: RunState, best: str) -> dict:
    """Sentences that depend on the kind of model."""
    prompt = parts.conditioning.prompt
    summary, shown = parts.task.summary or prompt.summary, grid_prompts(parts, config.log.prompts, 1)[0]
    writes = parts.task.makes == "captions"
    others = [name.replace("_0.", "_") for name in state.named() if name != best]
    variants = ", ".join(f'`variant="{name}"`' for name in others)
    return {
        "metadata": _metadata(parts.task.hub_tag or prompt.hub_tag),
        "title": Path(config.out).name,
        "summary": f"{parts.model.description} that {summary}, trained with attndiff.",
        "network": (network := next(iter(parts.model.components()))),
        "network_class": type(parts.model.components()[network]).__name__,
        "guidance": f"{config.log.guidance_scale:g}" if prompt.is_given and parts.task.given is nothing else None,
        "call": parts.task.call if writes else ", ".join(filter(None, [parts.task.call, prompt.call(shown)])),
        "weights": f"The folder opens with the weights `{best}`. The others: {variants}.",
        "limit_condition": None if writes else prompt.limit(parts.conditioning.tokenizer, parts.learned.class_names),
        "started_anew": config.model.init_from is None,
        "multiple": parts.model.size_multiple * (1 if parts.vae is None else vae_factor(parts.vae)),
        "measured_on": "image, pixels in [-1, 1]" if parts.vae is None else "latents",
    }


def _metadata(tag: str) -> str:
    """Front matter for the Hub. The licence of a model follows from its data, which only its maker knows."""
    tags = ["attndiff"]
    return ModelCardData(license="other", library_name="diffusers", tags=tags, pipeline_tag=tag).to_yaml()


def _data(config: TrainConfig, parts: Parts) -> dict:
    """What the model was trained on, with the licences that its rows name."""
    learned = parts.learned
    return {
        "source": Path(config.data.path).name,
        "images": "a stream" if learned.images is None else learned.images,
        "held_out": learned.held_out,
        "size": " x ".join(map(str, learned.data["size"])),
        "channels": ", ".join(map(str, learned.data["channels"])),
        "value_range": str(ValueRange(*learned.data["value_range"], learned.data.get("units"))),
        "skipped": learned.skipped if parts.images is None else len(parts.images.skipped),
        "licences": learned.licences,
    }


def _training(config: TrainConfig, parts: Parts, state: RunState) -> dict:
    """Counts, time and hardware."""
    seen = state.step * config.optim.batch_size
    parameters = sum(p.numel() for p in parts.model.parameters())
    start = config.model.init_from and f"`{Path(config.model.init_from).name}`"
    others = [f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate")]
    packages = ", ".join([f"attndiff {attndiff.__version__}", *others])
    rate = f"{seen / state.seconds:.1f} images/s, validation and sample grids included" if state.seconds else "unknown"
    return {
        "parameters": f"{parameters / 1e6:.2f} M",
        "start": start or "random weights",
        "vae": _vae(config, parts),
        "steps": f"{state.step} of {config.optim.batch_size} images",
        "images": f"{seen} of a stream" if config.data.stream else _visits(seen, parts.learned.images),
        "time": f"{state.seconds:.0f} s ({state.seconds / 3600:.2f} h)",
        "speed": rate,
        "hardware": hardware(),
        "software": packages,
    }


def _student(config: TrainConfig) -> dict | None:
    """How a few-step student samples, and whose it is."""
    if config.distill is None:
        return None
    return {
        "teacher": f"`{Path(config.model.init_from).name}`",
        "steps": ", ".join(map(str, config.distill.steps)),
        "guidance": config.distill.guidance_scale,
    }


def _vae(config: TrainConfig, parts: Parts) -> str | None:
    """The autoencoder and the latents it makes of an image."""
    if parts.vae is None:
        return None
    name = config.model.vae and f"`{Path(config.model.vae).name}`"
    sides = (side // vae_factor(parts.vae) for side in parts.learned.data["size"])
    shape = " x ".join(map(str, (parts.vae.config.latent_channels, *sides)))
    return f"{name or 'that of the model it started from'}, frozen; an image is {shape} latents"


def _visits(seen: int, images: int) -> str:
    return f"{seen} ({seen / max(1, images):.1f} visits to each)"


def _losses(validation: dict, unit: str) -> dict | None:
    """Held-out losses by weights and level, formatted; None if none were measured."""
    measured = {name: v for name, v in validation.items() if isinstance(v, dict) and "per_level" in v}
    if not measured:
        return None
    first = next(iter(measured.values()))
    columns = zip(*(v["per_level"] for v in measured.values()), strict=True)
    levels = zip(first["noise_over_signal"], columns, strict=True)
    return {
        "n": first["n"],
        "unit": unit,
        "by_weights": [(name, f"{v['loss']:.4f}") for name, v in measured.items()],
        "levels": [(f"{level:.3f}", [f"{error:.5f}" for error in errors]) for level, errors in levels],
    }


def hardware() -> str:
    """GPU, or CPU with its threads, of the machine that writes the card."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _without_places(value):
    """Settings without the folders of the machine they were used on: absolute paths keep their last name."""
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_places(v) for v in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _copied(source: Path, target: Path) -> bool:
    """Copy a picture of the run, if it has been drawn."""
    if source.is_file():
        shutil.copyfile(source, target)
    return source.is_file()


# What is measured for it


def _memory(config: TrainConfig, parts: Parts, held_out: dict) -> dict | None:
    """Loss on as many training images as the held-out loss was measured on."""
    if "per_level" not in held_out or parts.validation is parts.images:  # both None where the data are gone
        return None
    n = min(held_out["n"], len(parts.images))
    images = spread_over(parts.images, n)
    dataset = DrawnDataset(images, parts.conditioning, config.seed, make_sample=parts.make_sample)
    # One process writes the card while the others wait, so that nothing may be gathered from them.
    alone = SimpleNamespace(
        process_index=0,
        num_processes=1,
        device=next(parts.model.parameters()).device,
        reduce=lambda sums, _: sums,
        autocast=Accelerator().autocast,
    )
    loss = validate(parts.model, dataset, alone, doing="Loss on training images").loss
    ratio = loss / held_out["loss"] if held_out["loss"] else math.nan
    return {"n": n, "training": f"{loss:.4f}", "held_out": f"{held_out['loss']:.4f}", "ratio": f"{ratio:.3f}"}


def _neighbours(config: TrainConfig, parts: Parts, path: Path) -> dict | None:
    """Draw samples over their nearest training images; the distances, or None where there are none of one or other."""
    if parts.images is None or parts.task.makes != "images":
        return None
    prompts = grid_prompts(parts, config.log.prompts)
    samples = sample_row(parts, prompts, config.log.guidance_scale, "Sampling for the card")
    images = images_of(parts.images)
    spread = spread_over(images, min(REFERENCE, len(images)))
    data = parts.learned.data
    rows = progress(spread, "Reading training images", len(spread))
    reference = torch.stack([_small(torch.from_numpy(row[IMAGE.name]), data) for row in rows])
    pixels = torch.stack([_small(_pixels(image, data), data) for image in samples])
    view = on_white(data)
    indices, distances = nearest_images(view(pixels), view(reference))
    nearest = [torch.from_numpy(spread[i][IMAGE.name]) for i in indices[:, 0].tolist()]
    captions = ["" if prompt is None else str(prompt) for prompt in prompts]
    window = window_of(data)
    shown = [as_picture(image, window) for image in samples]
    known = [as_picture(as_image(n, data), window and (0, 255)) for n in nearest]
    save_picture(neighbour_sheet({"samples": shown}, {"samples": known}, captions), path)
    side = max(data["size"])
    return {
        "reference": len(spread),
        "scaled": f", at {COMPARED} px" if side > COMPARED else "",
        "distances": ", ".join(f"{d:.4f}" for d in distances[:, 0].tolist()),
    }


def _attention(config: TrainConfig, parts: Parts, path: Path) -> str | None:
    """Draw where each word of a prompt acted, or was seen; the text, or None where no network level looks at words."""
    if parts.task.makes == "captions":
        return _words_seen(parts, path)
    if not parts.conditioning.prompt.reads_text or not parts.model.looks_at_words or parts.task is not GENERATE:
        return None
    prompt = grid_prompts(parts, config.log.prompts)[0]
    pipe = make_pipeline(parts)
    pipe.set_progress_bar_config(desc="Sampling to see where words act", unit="step", **SETTINGS)
    with torch.compiler.set_stance("force_eager"):  # the code of compiled blocks records nothing
        output = pipe(
            prompt,
            guidance_scale=config.log.guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_attention_maps=True,
        )
    maps = output.attention_maps.averaged()[0]  # (S, h, w)
    tokens = parts.conditioning.prompt.tokens(pipe, prompt)
    shown = as_picture(output.images[0], window_of(parts.learned.data))
    save_picture(attention_picture(shown, tokens, maps), path)
    return prompt


def _words_seen(parts: Parts, path: Path) -> str | None:
    """Draw where the model looked for each word of a held-out image's caption; the caption, None without an image."""
    if parts.images is None:
        return None
    one = spread_over(parts.validation, 1)
    with torch.compiler.set_stance("force_eager"):  # the code of compiled blocks records nothing
        output = written_of(parts, one, output_attention_maps=True)
    picture = as_picture(as_image(one.tensor()[0], parts.learned.data), window_of(parts.learned.data))
    save_picture(attention_picture(picture, output.tokens[0], output.attention_maps[0], shares=False), path)
    return output.captions[0]


def _pixels(image: Image.Image | np.ndarray, data: dict) -> torch.Tensor:
    """A sample as ``(C, H, W)`` in [-1, 1], premultiplied."""
    low, high = (0, 255) if isinstance(image, Image.Image) else data["value_range"]
    array = np.atleast_3d(np.asarray(image, np.float32))
    pixels = torch.from_numpy((array - low) / (high - low) * 2 - 1).permute(2, 0, 1)
    return premultiplied(pixels) if has_alpha(data) else pixels


def _small(pixels: torch.Tensor, data: dict) -> torch.Tensor:
    """The middle square of ``(C, H, W)`` at the size of the data's square, at most `COMPARED` pixels a side."""
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    size = [min(COMPARED, length) for length in data["size"]]
    return F.interpolate(pixels[None, :, top : top + side, left : left + side], size=size, mode="area")[0]
