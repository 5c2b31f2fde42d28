"""Arrays kept in one block of memory, which loader workers share whether they are forked or started anew."""

import numpy as np
import torch


class KeptArrays:
    """Arrays of any shapes and types, read by index once all are there.

    The block is a tensor in the end: a process that is started anew is sent a handle of it, where arrays are copied.

    Args:
        at_most: Bytes. Where they become more, all are forgotten, and `fits` is false.
    """

    def __init__(self, at_most: int):
        self.at_most, self.fits = at_most, True
        self._block: bytearray | torch.Tensor = bytearray()
        self._ends = [0]
        self._forms: list[tuple[str, tuple[int, ...]]] = []  # type and shape, each once
        self._form: list[int] = []  # of each array

    def append(self, array: np.ndarray) -> None:
        """Copy an array to the end of the block."""
        self.fits = self.fits and len(self._block) + array.nbytes <= self.at_most
        if not self.fits:
            self._block = bytearray()
            return
        self._block += array.tobytes()
        self._ends.append(len(self._block))
        form = array.dtype.str, array.shape
        if form not in self._forms:
            self._forms.append(form)
        self._form.append(self._forms.index(form))

    def close(self) -> None:
        """Make the block what can be shared; none are appended any more."""
        self._block = torch.frombuffer(self._block, dtype=torch.uint8) if self._block else torch.empty(0)

    def __getitem__(self, i: int) -> np.ndarray:
        """The array itself, which is not to be written to."""
        dtype, shape = self._forms[self._form[i]]
        return self._block[self._ends[i] : self._ends[i + 1]].numpy().view(dtype).reshape(shape)
