"""Open a pipeline folder with diffusers alone and sample it: attndiff is not imported, and need not be installed.

python open_with_diffusers.py PIPELINE_FOLDER OUT_FOLDER PROMPT_OR_CLASS...
"""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL.PngImagePlugin import PngInfo

folder, out, *prompts = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
kind = "class_labels" if pipeline.tokenizer is None else "prompt"
generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
images = pipeline(**{kind: prompts}, generator=generators).images
if "attndiff" in sys.modules:
    raise SystemExit("the folder is not self-contained: attndiff was imported")
Path(out).mkdir(parents=True, exist_ok=True)
drawn_by = PngInfo()
drawn_by.add_text("Software", "attndiff")  # by which attndiff knows a drawn picture among data
for number, image in enumerate(images):
    image.save(Path(out, f"{number:02d}.png"), pnginfo=drawn_by)
