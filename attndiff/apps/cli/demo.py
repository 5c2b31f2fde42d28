"""``attndiff demo``."""

from typing import Annotated

import typer


def demo(
    model: Annotated[str, typer.Argument(help="Pipeline folder, Hub id user/name, emoji-xs or emoji-xs-student.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the page is: http://127.0.0.1:PORT.")] = 7860,
) -> None:
    """Serve a page to try a model on, to this machine alone."""
    from attndiff.errors import UserError

    try:
        from attndiff.apps.applying.page import build_making
        from attndiff.apps.captioning.page import build_writing
        from attndiff.apps.demo import build, serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError('the demo needs gradio: pip install "attndiff[demo]".') from None
    from attndiff.apps.sample import open_model
    from attndiff.tasks.registry import task_of

    pipeline = open_model(model)
    task = task_of(pipeline)
    building = build_writing if task.makes == "captions" else build_making if task.call else build
    page = building(pipeline, model)
    print(f"{serve(page, port)} (Ctrl-C ends it)", flush=True)
    page.block_thread()
