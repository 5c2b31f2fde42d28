"""Where the code of opened folders goes: diffusers copies it file by file, so that no two test processes may share it."""

import os
from tempfile import TemporaryDirectory

modules = TemporaryDirectory()  # gone when the process ends
os.environ["HF_MODULES_CACHE"] = modules.name  # read once, when diffusers is imported
