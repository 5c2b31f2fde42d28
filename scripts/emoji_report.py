"""The figures of an emoji evaluation as a section of a model card."""

SETS = {"training captions": "training captions", "held-out captions": "captions of held-out families"}


def percent(figure: dict) -> str:
    """A share with its interval and n."""
    low, high = figure["interval"]
    return f"{figure['share']:.1%} [{low:.1%}, {high:.1%}], n={figure['n']}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scores(report: dict) -> str:
    """Every measure of samples, with that of real images beside."""
    rows, real = [], report["real"]
    for name, label in SETS.items():
        if name in report["generated"]:
            made = report["generated"][name]["caption_retrieval"]
            beside = percent(real[f"caption_retrieval_{name}"])
            rows.append([f"own caption first among 50, {label}", percent(made), beside])
    for name, label in SETS.items():
        if name in report["generated"]:
            made = report["generated"][name]["style_accuracy"]
            rows.append([f"style, {label}", percent(made), percent(real["style_accuracy_held_out_families"])])
    of_real = real["nearest_training_image_held_out_families"]
    for name, label in SETS.items():
        if name in report["generated"]:
            made = report["generated"][name]["nearest_training_image"]
            rows.append([f"distance to nearest training image, median, {label}"])
            rows[-1] += [f"{d['median']:.4f}, n={d['n']}" for d in (made, of_real)]
            rows.append([f"near-copies of training images, {label}"])
            rows[-1] += [percent(d["near_copies"]) for d in (made, of_real)]
    return table(["measure", "samples", "real images"], rows)


def withheld(report: dict) -> str:
    """One row a pair of concept and style that was not trained on."""
    head = ["withheld pair", "own caption first among 50", "ranks", "rank of the real picture", "style"]
    rows = [
        [
            f"{row['concept']}, {row['style']}",
            percent(row["caption_retrieval"]),
            ", ".join(map(str, row["ranks"])),
            str(row["rank_of_real_picture"]),
            percent(row["style_accuracy"]),
        ]
        for row in report["withheld_pairs"]
    ]
    return table(head, rows)


def markdown(report: dict) -> str:
    """The section, with links to the pictures beside it."""
    settings, chance = report["settings"], report["chance"]
    return f"""## Evaluation

{settings["steps"]} steps, guidance {settings["guidance_scale"]:g}, seeds fixed beforehand, nothing selected.

![Ten concepts in every style](grid.png)

Red frames: pairs of concept and style that were withheld from training. Below, under every row of samples, the training
images nearest to them.

![The same with the nearest training images](grid_neighbours.png)

{scores(report)}

Intervals are 95 % Wilson intervals. Chance is {chance["caption_retrieval"]:.1%} for captions and
{chance["style_accuracy"]:.1%} for styles. Captions are judged by two towers trained on real images of all families and
styles but the very (concept, style) pairs that are scored; the column of real images is their own result on the real
pictures of these pairs. Styles are judged by a classifier trained on the model's training images; the column of real
images is its result on held-out families, as are the distances. A near-copy is nearer to a training image than
{1 - report["near_copy_quantile"]:.0%} of the real pictures of held-out families are (mean squared difference below
{report["near_copy_threshold"]:.4f}).

{withheld(report)}
"""
