"""Code of opened folders goes where no other test process writes: diffusers copies it there file by file."""

import os
from tempfile import TemporaryDirectory

modules = TemporaryDirectory()  # gone when the process ends
os.environ["HF_MODULES_CACHE"] = modules.name  # read once, when diffusers is imported
