"""A file of slots, which processes that come and go fill together.

Whatever is read from a slot was written whole: a check sum stands before it. Two processes that fill the same slot
write the same, a process that is killed leaves a slot that counts as empty, and where the disk is full nothing more is
kept. The file is as large as what was written, and none of it is held in a process's memory.
"""

import logging
import os
import struct
import zlib
from pathlib import Path

logger = logging.getLogger(__name__)

HEAD = struct.Struct("<BII")  # kind, length in bytes, check sum of kind and content


class Slots:
    """Slots by number, each empty or with some bytes of a kind.

    Args:
        path: The file, made where it is not there.
        size: Bytes that a slot holds at most.
        at_most: Bytes of the file; slots that would lie beyond stay empty.

    Raises:
        OSError: If the file can be neither made nor written to.
    """

    def __init__(self, path: Path, size: int, at_most: int):
        self.path, self.size, self.count = path, size, at_most // (HEAD.size + size)
        self._file: int | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open()

    def __getstate__(self) -> dict:
        return {**vars(self), "_file": None}  # another process opens it for itself

    def __del__(self):
        if self._file is not None:
            os.close(self._file)

    def _open(self) -> int:
        """The file, opened by this process."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        return self._file

    def read(self, i: int) -> tuple[int, bytes] | None:
        """Kind and content of a slot; None of an empty one."""
        if i >= self.count:
            return None
        stored = os.pread(self._open(), HEAD.size + self.size, i * (HEAD.size + self.size))
        if len(stored) < HEAD.size:
            return None
        kind, length, checked = HEAD.unpack_from(stored)
        content = stored[HEAD.size : HEAD.size + length]
        whole = kind and len(content) == length and checked == zlib.crc32(content, kind)
        return (kind, content) if whole else None

    def write(self, i: int, kind: int, content: bytes) -> None:
        """Fill a slot.

        Args:
            i: Its number.
            kind: From 1 to 255.
            content: What is too long is not kept.
        """
        if i >= self.count or len(content) > self.size:
            return
        head = HEAD.pack(kind, len(content), zlib.crc32(content, kind))
        try:
            os.pwrite(self._open(), head + content, i * (HEAD.size + self.size))
        except OSError as error:
            logger.warning("%s: no more decoded images are kept (%s)", self.path, error.strerror)
            self.count = 0
