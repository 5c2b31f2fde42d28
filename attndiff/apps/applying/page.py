"""A page to try a model on that makes pictures of pictures."""

import gradio as gr
import torch
from PIL import Image

from attndiff.apps.captioning.page import LARGEST
from attndiff.apps.demo import KEPT_S, SHOWN, WAITING, check, prompt_field, saved, slider
from attndiff.errors import UserError
from attndiff.tasks.prompts import prompt_of
from attndiff.tasks.registry import task_of
from attndiff.viewing import as_picture, enlarge, window_of


def make(
    pipeline, picture: Image.Image | None, mask: Image.Image | None, prompt: str, steps: float, seed: float
) -> list[Image.Image]:
    """What becomes of a picture, and of a map of parts also where it is uncertain.

    Args:
        pipeline: The model.
        picture: What a visitor gave.
        mask: White where it is to draw, for a model that fills holes.
        prompt: Caption or class; empty for an unconditional model.
        steps: Sampling steps, from 1 to 100.
        seed: Of the noise.

    Raises:
        UserError: If an argument is out of bounds, is missing, or does not fit the model.
    """
    given = {"image": picture} | ({"mask_image": mask} if task_of(pipeline).takes_masks else {})
    for name, one in given.items():
        if one is None:
            raise UserError(f"{name}: give one.")
        if max(one.size) > LARGEST:
            raise UserError(f"{name}: give one of at most {LARGEST} pixels a side, not {one.width} x {one.height}.")
    check(prompt, steps=steps, seed=seed)
    told = prompt_of(pipeline).read(pipeline, [prompt]) if prompt_of(pipeline).is_given else {}
    try:
        output = pipeline(
            **given, **told, num_inference_steps=int(steps), generator=torch.Generator().manual_seed(int(seed))
        )
    except ValueError as error:  # how a pipeline refuses arguments
        raise UserError(str(error)) from None
    pictures = [as_picture(image, window_of(pipeline.config.data)) for image in output.images]
    if task_of(pipeline).makes == "maps":
        pictures += [as_picture(one[..., None], (0, 1)) for one in output.uncertainty]
    return [enlarge(one, SHOWN) for one in pictures]


def build_making(pipeline, name: str) -> gr.Blocks:
    """The page of a model that makes pictures of pictures.

    Args:
        pipeline: The model.
        name: Its name, the page's title.
    """
    task = task_of(pipeline)
    steps = task.arguments.get("num_inference_steps") or pipeline.own_defaults()[0]

    def answer(*arguments):
        try:
            return saved(make(pipeline, *arguments), made.GRADIO_CACHE)
        except UserError as error:
            raise gr.Error(str(error)) from None

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gr.Markdown(f"# {name}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="image", type="pil", image_mode=None)
                mask = gr.Image(label="mask, white where it draws", type="pil", visible=task.takes_masks)
                prompt = prompt_field(pipeline)
                button = gr.Button("Make", variant="primary")
                with gr.Accordion("More", open=False):
                    more = [slider("steps", steps), slider("seed", 0)]
            with gr.Column():
                made = gr.Gallery(label="made", columns=1, format="png")
        button.click(answer, [picture, mask, prompt, *more], made, api_name="make")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)
