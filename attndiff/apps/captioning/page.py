"""A page to try a model on that writes captions."""

import gradio as gr
import torch
from PIL import Image

from attndiff.apps.demo import KEPT_S, SHOWN, WAITING, check_numbers, saved
from attndiff.errors import UserError
from attndiff.lens.pictures import attention_picture
from attndiff.viewing import enlarge

LIMITS = {"beams": (1, 16), "temperature": (0.1, 4.0), "seed": (0, 2**31 - 1)}
LARGEST = 4096  # pixels a side of what is taken


def write(
    pipeline, picture: Image.Image | None, beams: float, draws: bool, temperature: float, seed: float
) -> tuple[str, Image.Image]:
    """The caption of a picture, and where the model looked for each of its words.

    Args:
        pipeline: The model.
        picture: What a visitor gave.
        beams: Texts that are kept while searching, from 1 to 16.
        draws: Whether words are drawn by their likelihood.
        temperature: Of that, from 0.1 to 4.
        seed: Of that.

    Raises:
        UserError: If an argument is out of bounds or there is no picture.
    """
    if picture is None:
        raise UserError("image: give one.")
    if max(picture.size) > LARGEST:
        raise UserError(f"image: give one of at most {LARGEST} pixels a side, not {picture.width} x {picture.height}.")
    check_numbers(LIMITS, {"beams": beams, "temperature": temperature, "seed": seed})
    generator = torch.Generator().manual_seed(int(seed))
    search = {"num_beams": 1 if draws else int(beams), "do_sample": bool(draws), "temperature": float(temperature)}
    try:
        output = pipeline(picture, **search, generator=generator, output_attention_maps=True)
    except ValueError as error:  # how a pipeline refuses arguments
        raise UserError(str(error)) from None
    maps = attention_picture(enlarge(picture, SHOWN), output.tokens[0], output.attention_maps[0], shares=False)
    return output.captions[0], maps


def build_writing(pipeline, name: str) -> gr.Blocks:
    """The page of a model that writes captions.

    Args:
        pipeline: The model.
        name: Its name, the page's title.
    """

    def answer(*arguments):
        try:
            caption, maps = write(pipeline, *arguments)
        except UserError as error:
            raise gr.Error(str(error)) from None
        return caption, saved([maps], looked.GRADIO_CACHE)

    with gr.Blocks(title=name, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gr.Markdown(f"# {name}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="image", type="pil", image_mode=None)
                button = gr.Button("Write", variant="primary")
                with gr.Accordion("More", open=False):
                    beams = gr.Slider(*LIMITS["beams"], 4, step=1, label="beams")
                    draws = gr.Checkbox(False, label="draw words by how likely they are")
                    temperature = gr.Slider(*LIMITS["temperature"], 1.0, step=0.1, label="temperature")
                    seed = gr.Number(0, label="seed", precision=0, minimum=0)
            with gr.Column():
                caption = gr.Textbox(label="caption")
                looked = gr.Gallery(label="where it looks for each word", columns=1, format="png")
        button.click(answer, [picture, beams, draws, temperature, seed], [caption, looked], api_name="write")
    return page.queue(max_size=WAITING, default_concurrency_limit=1)
