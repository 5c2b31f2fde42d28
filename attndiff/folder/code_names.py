"""Names of code files: the module that they define, and a hash of their content."""

import hashlib
import re

CODE_FILE = re.compile(r"(.+)_([0-9a-f]{12})\.py")


def code_hash(source: str) -> str:
    """The hash that the name of a code file carries."""
    return hashlib.sha256(source.encode()).hexdigest()[:12]
