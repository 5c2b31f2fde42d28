"""A page to try a model on: gradio draws it and queues the calls; what a visitor sends is checked here."""

import math
import uuid
from pathlib import Path

import gradio as gr
from PIL import Image

from attndiff.apps.sample import Request, SampledRow, sample_rows
from attndiff.drawn import save_picture
from attndiff.errors import UserError
from attndiff.lens.pictures import attention_picture
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline
from attndiff.tasks.prompts import class_names_of, prompt_of
from attndiff.viewing import as_picture, enlarge, window_of
from attndiff.words import describe_unknown

LIMITS = {"steps": (1, 100), "guidance": (0, 20), "seed": (0, 2**31 - 1), "images": (1, 16)}  # of a call
WHOLE = ("steps", "seed", "images", "beams")
LONGEST = 1000  # characters of a prompt
SHOWN = 192  # pixels a side at least
WAITING = 32  # calls in the queue; further ones are turned away
KEPT_S = 3600  # pictures, on the disk


def check(prompt: str, **numbers: float) -> None:
    """Raise `UserError` for what no call may ask for; a page's own bounds bind browsers only."""
    if not isinstance(prompt, str) or len(prompt) > LONGEST:
        raise UserError(f"prompt: give a text of at most {LONGEST} characters.")
    check_numbers(LIMITS, numbers)


def check_numbers(limits: dict[str, tuple[float, float]], numbers: dict[str, float]) -> None:
    """Raise `UserError` for a number out of its limits, or a fraction of what comes as a whole."""
    for name, value in numbers.items():
        low, high = limits[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not low <= value <= high or (name in WHOLE and value != int(value)):
            raise UserError(f"{name}: give a {'whole ' * (name in WHOLE)}number from {low} to {high}, not {value!r}.")


def draw(
    pipeline: AttnDiffPipeline, prompt: str, images: float, steps: float, guidance: float, seed: float, attention: bool
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Samples of a prompt, and if asked for where its words acted.

    Args:
        pipeline: The model.
        prompt: Caption or class; empty for an unconditional model.
        images: How many, from 1 to 16.
        steps: Sampling steps, from 1 to 100.
        guidance: Guidance scale, from 0 to 20.
        seed: Of the first image; the others count up from it.
        attention: Draw the attention of every image too.

    Raises:
        UserError: If an argument is out of bounds or does not fit the model.
    """
    chosen = {} if steps == pipeline.own_defaults()[0] else {"steps": steps}
    check(prompt, images=images, guidance=guidance, seed=seed, **chosen)
    conditional = prompt_of(pipeline).is_given
    prompts = [prompt] * int(images) if conditional else []
    count = 1 if conditional else int(images)
    request = Request(prompts, int(steps), guidance, int(seed), count, attention=bool(attention) and conditional)
    row = merged(sample_rows(pipeline, request))
    images = [as_picture(image, window_of(pipeline.config.data)) for image in row.images]
    pictures = [enlarge(image, SHOWN) for image in images]
    if row.maps is None:
        return pictures, []
    tokens, maps = prompt_of(pipeline).tokens(pipeline, prompt), row.maps.averaged()
    return pictures, [attention_picture(image, tokens, m) for image, m in zip(images, maps, strict=True)]


def merged(rows: list[SampledRow]) -> SampledRow:
    """All images as one row; only rows of an unconditional model, which have no maps, are several."""
    return SampledRow([image for row in rows for image in row.images], rows[0].maps)


def saved(pictures: list[Image.Image], folder: str) -> list[str]:
    """Each picture in a file of its own: gradio names files by content and writes one anew while another reads it."""
    paths = [Path(folder) / f"{uuid.uuid4().hex}.png" for _ in pictures]
    for picture, path in zip(pictures, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_picture(picture, path)
    return [str(path) for path in paths]


def build(pipeline: AttnDiffPipeline, name: str) -> gr.Blocks:
    """The page of a model.

    Args:
        pipeline: The model.
        name: Its name, the page's title.
    """
    steps, guidance = pipeline.own_defaults()

    def answer(*arguments):
        try:
            drawn = draw(pipeline, *arguments)
        except UserError as error:
            raise gr.Error(str(error)) from None
        if pipeline.tokenizer is not None and (said := describe_unknown(pipeline.tokenizer, arguments[0])):
            gr.Warning(said)
        return [saved(pictures, samples.GRADIO_CACHE) for pictures in drawn]

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gr.Markdown(f"# {name}")
        with gr.Row():
            with gr.Column():
                prompt = prompt_field(pipeline)
                images = slider("images", 4)
                button = gr.Button("Draw", variant="primary")
                with gr.Accordion("More", open=False):
                    more = [slider("steps", steps), slider("guidance", guidance), slider("seed", 0)]
                    attention = gr.Checkbox(False, label="where the words act", visible=prompt_of(pipeline).is_given)
            with gr.Column():
                samples = gr.Gallery(label="samples", columns=4, format="png")
                maps = gr.Gallery(label="where the words act", columns=1, format="png")
        button.click(answer, [prompt, images, *more, attention], [samples, maps], api_name="draw")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)


def prompt_field(pipeline: AttnDiffPipeline) -> gr.components.Component:
    """What a visitor says what to draw with."""
    prompt, names = prompt_of(pipeline), class_names_of(pipeline)
    if names:
        return gr.Dropdown(names, value=names[0], label=prompt.name)
    return gr.Textbox(label=prompt.name, max_length=LONGEST, visible=prompt.is_given)


def slider(name: str, value: float) -> gr.components.Component:
    """A field for a number of `LIMITS`."""
    low, high = LIMITS[name]
    high = max(high, value)  # a model that draws patch by patch has no other number of steps than its own
    if name == "seed":
        return gr.Number(value, label=name, precision=0, minimum=low, maximum=high)
    return gr.Slider(low, high, value, step=1 if name in WHOLE else 0.1, label=name)


def serve(page: gr.Blocks, port: int | None) -> str:
    """Serve a page to this machine alone, and nothing but its own pictures beside it.

    Args:
        page: From `build`; ``page.block_thread()`` waits for its end.
        port: None takes one that is free.

    Returns:
        The page's address.

    Raises:
        UserError: If the port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            allowed_paths=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port {port}: {error}") from None
    return address
