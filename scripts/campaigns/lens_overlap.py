"""Do the attention maps mean something? How well a noun's map finds the object it names.

    python scripts/campaigns/lens_overlap.py MODEL --data attndiff/assets/emoji32/validation.parquet --json overlap.json

MODEL is a text-to-image pipeline folder; the data has images with alpha, `caption`, `style` and `family` columns. One
image a family is taken. Its maps are recorded with the true image under noise (the object is where alpha > 0.5), and
while a new image is sampled for the same prompt (the object is what is not white).

The measure is the area under the ROC curve: the probability that a pixel of the object has a higher weight than one of
the background, for the mean of all levels and for each level's own maps. The noun's is held against 0.5; against each
kind of other token in the same prompt, against all of them, and against all but the start, which gathers the
background; against its own with the object of another prompt, because a map that only prefers the middle beats 0.5 too;
against another prompt's noun put in its place under the same image; and against untrained networks of the same
configuration, because the keys of words and the white of backgrounds are the same in all prompts: one network of random
weights gave nouns 0.62 and its other tokens 0.45 (80 prompts). `mass_ratio` is the share of a map's weight on the
object over the object's share of the area.
Intervals are 95 % bootstrap intervals over prompts; the untrained's are the lowest and highest mean of all seeds.
"""

import argparse
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image

from attndiff.diffusion.objectives import make_objective
from attndiff.folder.open import load
from attndiff.lens.pictures import merge_words
from attndiff.lens.record import AttentionMaps, AttentionRecorder

AREA = (0.1, 0.85)  # an object smaller or larger than this share of the image leaves too little to compare
WHITE = 0.9  # a generated pixel with all channels above this, in [-1, 1], is background
RESAMPLES = 2000
NETWORKS = ("unet", "condition_encoder")
CONTROLS = (
    "other",
    "style",
    "comma",
    "start",
    "all_others",
    "visible_others",
    "noun_on_another_object",
    "wrong_noun",
)
PEOPLE = {"man", "woman", "person", "people", "men", "women"}
PREPOSITIONS = {"with", "without", "of", "in", "on", "over", "behind", "and", "at", "from", "to", "for", "holding"}


@dataclass
class Case:
    """One prompt: its token positions by kind of token, and the true image ``(3, H, W)`` with its object ``(H, W)``."""

    prompt: str
    kinds: dict[str, list[list[int]]]
    pixels: torch.Tensor
    object: torch.Tensor


def token_kinds(tokens: list[str], style: str) -> dict[str, list[list[int]]] | None:
    """Positions of each word by kind: noun, other (of the caption), style, comma and start; None where cut off."""
    words = merge_words(tokens)
    length = len(style.split())
    if [word for word, _ in words[-length:]] != style.lower().split() or len(words) < length + 2:
        return None
    name, separators = words[:-length], [positions for word, positions in words if word == ","]
    head = head_noun([word for word, _ in name])
    return {
        "noun": [name[head][1]],
        "other": [positions for i, (word, positions) in enumerate(name) if i != head and word[0].isalnum()],
        "style": [positions for _, positions in words[-length:]],
        "comma": separators,
        "start": [[0]],
    }


def head_noun(words: list[str]) -> int:
    """Position of the noun that names the object: the last word before a comma, a preposition or a participle.

    "red apple", "face with tears of joy" and "person getting haircut" name an apple, a face and a person.
    """
    for i, word in enumerate(words[1:], start=1):
        participle = word.endswith("ing") and (i + 1 < len(words) or words[i - 1] in PEOPLE)
        if participle or not word[0].isalnum() or word in PREPOSITIONS:
            return i - 1
    return len(words) - 1


def read_cases(data: Path, tokenizer, size: int, n: int, seed: int) -> list[Case]:
    """Up to ``n`` cases of different families, in random order."""
    table = pq.read_table(data).to_pylist()
    cases, families = [], set()
    for i in np.random.default_rng(seed).permutation(len(table)):
        row = table[i]
        prompt = f"{row['caption']}, {row['style']}"
        kinds = token_kinds(tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"]), row["style"])
        if row["family"] in families or kinds is None:
            continue
        image = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGBA").convert("RGBa").resize((size, size))
        rgba = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        shape = rgba[3] > 0.5
        if AREA[0] < shape.float().mean() < AREA[1]:
            families.add(row["family"])
            on_white = (rgba[:3] + 1 - rgba[3:]).clamp(0, 1)
            cases.append(Case(prompt, kinds, on_white * 2 - 1, shape))
        if len(cases) == n:
            break
    return cases


def by_level(maps: AttentionMaps) -> dict[str, torch.Tensor]:
    """``(B, S, H, W)`` maps of every level, enlarged to the image, and their mean."""
    scales = {
        f"level {level}": F.interpolate(scale, size=maps.size, mode="bilinear", align_corners=False).cpu()
        for level, scale in maps.per_scale.items()
    }
    return {"all levels": maps.averaged().cpu(), **scales}


def maps_under_noise(pipe, cases: list[Case], ratio: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """`by_level` of the true images, noise making up ``ratio`` of noise plus signal."""
    objective = make_objective(dict(pipe.config.objective))
    x0 = torch.stack([case.pixels for case in cases]).to(pipe.unet.device)
    noise = torch.randn(x0.shape, generator=generator).to(x0)
    level = objective.level_from_log_ratio(torch.logit(torch.full((len(cases),), ratio, device=x0.device)))
    text = pipe.tokenizer([case.prompt for case in cases], padding=True, return_tensors="pt").to(x0.device)
    with torch.no_grad(), AttentionRecorder(pipe.unet) as recorder:
        condition = pipe.condition_encoder(input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        pipe.unet(
            objective.scale_input(objective.add_noise(x0, noise, level), level).to(pipe.unet.dtype),
            objective.coordinate(level),
            condition.tokens,
            condition.mask,
            condition.pooled,
        )
    return by_level(recorder.maps())


def maps_while_sampling(pipe, cases: list[Case], steps: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """`by_level` and the objects ``(B, H, W)`` of newly sampled images."""
    generator = [torch.Generator().manual_seed(seed + i) for i in range(len(cases))]
    out = pipe(
        prompt=[case.prompt for case in cases],
        num_inference_steps=steps,
        generator=generator,
        output_type="pt",
        output_attention_maps=True,
    )
    white = (out.images.float() * 2 - 1 > WHITE).all(dim=1)
    return by_level(out.attention_maps), ~white.cpu()


def auc(weights: torch.Tensor, shape: torch.Tensor) -> float:
    """Probability that an object's pixel outweighs a background's, ties counting half (Mann-Whitney)."""
    inside, outside = weights[shape][:, None], weights[~shape][None]
    return float((inside > outside).double().mean() + (inside == outside).double().mean() / 2)


def mass_ratio(weights: torch.Tensor, shape: torch.Tensor) -> float:
    """Share of the weight on the object over the object's share of the area."""
    return float(weights[shape].sum() / weights.sum() / shape.float().mean())


def scores(
    case: Case, maps: torch.Tensor, shape: torch.Tensor, another: torch.Tensor, wrong: torch.Tensor | None = None
) -> dict[str, dict[str, float]]:
    """AUC and mass ratio of every kind of token of one prompt.

    Args:
        case: The prompt.
        maps: ``(S, H, W)``.
        shape: ``(H, W)`` bool, the object.
        another: ``(H, W)`` bool, the object of another prompt.
        wrong: ``(H, W)``, the map of another prompt's noun under this image.
    """
    noun = maps[case.kinds["noun"][0]].mean(0)
    groups = dict(case.kinds)
    groups["all_others"] = [word for kind, words in groups.items() if kind != "noun" for word in words]
    groups["visible_others"] = [word for word in groups["all_others"] if word not in groups["start"]]
    result = {}
    for name, measure_of in (("auc", auc), ("mass_ratio", mass_ratio)):
        found = {
            kind: float(np.mean([measure_of(maps[word].mean(0), shape) for word in words]))
            for kind, words in groups.items()
            if words
        }
        found["noun_on_another_object"] = measure_of(noun, another)
        if wrong is not None:
            found["wrong_noun"] = measure_of(wrong, shape)
        for control in CONTROLS:
            if control in found:
                found[f"noun_minus_{control}"] = found["noun"] - found[control]
        result[name] = found
    return result


def interval(values: list[float], rng: np.random.Generator) -> dict[str, float]:
    """Mean of per-prompt values with its 95 % bootstrap interval."""
    values = np.asarray(values)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def summary(per_prompt: list[dict], rng: np.random.Generator) -> dict[str, dict]:
    """Means and intervals over prompts, by measure and kind."""
    result = {}
    for measure in per_prompt[0]:
        kinds = list(dict.fromkeys(kind for scored in per_prompt for kind in scored[measure]))
        result[measure] = {
            kind: interval([scored[measure][kind] for scored in per_prompt if kind in scored[measure]], rng)
            for kind in kinds
        }
    return result


def score_all(
    cases: list[Case], maps: torch.Tensor, shapes: torch.Tensor, wrong: torch.Tensor | None = None
) -> list[dict]:
    """Scores of all prompts whose object has a usable area; the object of another prompt is the next one's."""
    usable = [i for i, shape in enumerate(shapes) if AREA[0] < shape.float().mean() < AREA[1]]
    following = [*usable[1:], *usable[:1]]
    return [
        scores(cases[i], maps[i], shapes[i], shapes[k], None if wrong is None else wrong[i])
        for i, k in zip(usable, following, strict=True)
    ]


def measure_real(pipe, cases: list[Case], ratio: float, seed: int) -> dict[str, dict]:
    """Summary over true images at one noise ratio, by level."""
    others = [*cases[1:], *cases[:1]]
    swapped = [replace(c, prompt=other.prompt, kinds=other.kinds) for c, other in zip(cases, others, strict=True)]
    maps, wrong = (maps_under_noise(pipe, x, ratio, torch.Generator().manual_seed(seed)) for x in (cases, swapped))
    shapes, result = torch.stack([case.object for case in cases]), {}
    for level in maps:
        nouns = [m[case.kinds["noun"][0]].mean(0) for m, case in zip(wrong[level], swapped, strict=True)]
        scored = score_all(cases, maps[level], shapes, torch.stack(nouns))
        result[level] = summary(scored, np.random.default_rng(seed))
    return result


def untrained(pipe, seed: int) -> SimpleNamespace:
    """The pipeline's parts with freshly drawn weights."""
    torch.manual_seed(seed)
    fresh = {}
    for name in NETWORKS:
        part = getattr(pipe, name)
        config = {key: value for key, value in part.config.items() if not key.startswith("_")}
        fresh[name] = type(part).from_config(config).to(pipe.unet.device).eval()
    return SimpleNamespace(**fresh, tokenizer=pipe.tokenizer, config=pipe.config)


def measure_untrained(pipe, cases: list[Case], ratio: float, seeds: int) -> dict[str, dict]:
    """Mean, lowest and highest of the means over prompts of several untrained networks, by level."""
    runs = [measure_real(untrained(pipe, seed), cases, ratio, seed) for seed in range(seeds)]

    def spread(level: str, name: str, kind: str) -> dict[str, float]:
        means = [run[level][name][kind]["mean"] for run in runs]
        return {"mean": float(np.mean(means)), "low": min(means), "high": max(means), "n": seeds}

    return {
        level: {name: {kind: spread(level, name, kind) for kind in kinds} for name, kinds in measures.items()}
        for level, measures in runs[0].items()
    }


def measure_generated(pipe, cases: list[Case], steps: int, seed: int) -> dict[str, dict]:
    """Summary over newly sampled images, by level."""
    maps, shapes = maps_while_sampling(pipe, cases, steps, seed)
    scored = {level: score_all(cases, found, shapes) for level, found in maps.items()}
    return {level: summary(rows, np.random.default_rng(seed)) for level, rows in scored.items() if rows}


def measure(pipe, cases: list[Case], ratios: list[float], steps: int, seed: int, seeds: int) -> dict:
    """The whole report as JSON-ready numbers: source, level, measure, kind."""
    report = {f"real, noise {ratio:g}": measure_real(pipe, cases, ratio, seed) for ratio in ratios}
    report |= {f"untrained, noise {ratio:g}": measure_untrained(pipe, cases, ratio, seeds) for ratio in ratios}
    return report | {"generated": measure_generated(pipe, cases, steps, seed)}


def show(report: dict) -> None:
    """Print the AUCs."""
    for source, levels in report.items():
        for level, result in levels.items():
            for kind, v in result["auc"].items():
                numbers = f"{v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}] n={v['n']}"
                print(f"{source:20} {level:10} {kind:34} {numbers}")


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="text-to-image pipeline folder")
    parser.add_argument("--data", type=Path, required=True, help="parquet with alpha images")
    parser.add_argument("--n", type=int, default=80, help="prompts at most")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.4, 0.6, 0.8], help="noise over noise plus signal")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--untrained", type=int, default=8, help="untrained networks to compare with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the report")
    args = parser.parse_args()

    pipe = load(args.model)
    cases = read_cases(args.data, pipe.tokenizer, pipe.unet.config.sample_size, args.n, args.seed)
    report = measure(pipe, cases, args.ratios, args.steps, args.seed, args.untrained)
    show(report)
    report = {"model": args.model, "data": str(args.data), "n": len(cases), **report}
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
