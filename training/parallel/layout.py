"""How a run is laid out over processes and micro-batches: what a resumed run must share beyond its config.

The images of a step, their order and their noise follow from the config alone. Sums of floats do not: with other
processes or micro-batches they are made in another order, and losses agree within rounding.
"""

import os
from dataclasses import dataclass

from attndiff.errors import UserError


def asked_of_launcher(name: str) -> bool:
    """Whether Accelerate's launcher was told to use something, as ``FSDP`` or ``DEEPSPEED``, on several processes."""
    asked = os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"
    return asked and int(os.environ.get("WORLD_SIZE", 1)) > 1


@dataclass(frozen=True)
class ParallelLayout:
    """Who handles what of a global batch.

    Args:
        processes: That share it.
        micro_batch: Images that each handles at once.
        data: Fingerprint of the training images with their captions or classes; None of a stream, which is known by
            its shards.
        lowered: Whether the micro-batch is smaller than asked for, as memory ran out.
        sharded: Whether each process keeps only its share of the weights (FSDP2).
        zero: Whether each keeps only its share of the moments (DeepSpeed).
    """

    processes: int
    micro_batch: int
    data: str | None = None
    lowered: bool = False
    sharded: bool = False
    zero: bool = False

    def accumulation(self, batch_size: int) -> int:
        """Micro-batches of each process in a step.

        Raises:
            UserError: If they do not make up the batch.
        """
        passes = batch_size // (self.micro_batch * self.processes)
        if passes * self.micro_batch * self.processes != batch_size:
            raise UserError(
                f"optim.batch_size {batch_size} must be a multiple of optim.micro_batch {self.micro_batch} "
                f"times {self.processes} process{'es' if self.processes > 1 else ''}."
            )
        return passes

    def __str__(self) -> str:
        kind = "sharded " if self.sharded else "DeepSpeed " if self.zero else ""
        noun = "process" if self.processes == 1 else f"{kind}processes"
        return f"{self.processes} {noun} with micro-batches of {self.micro_batch}"

    @property
    def shared_out(self) -> bool:
        """Whether no process has all of the state."""
        return self.sharded or self.zero

    def same_sums(self, other: "ParallelLayout") -> bool:
        """Whether floats are summed in the same order."""
        mine, theirs = ((s.processes, s.micro_batch, s.sharded, s.zero) for s in (self, other))
        return mine == theirs


def smaller(share: int, micro_batch: int) -> int:
    """The largest micro-batch of at most half the size that divides a process's ``share`` of the batch.

    Raises:
        UserError: If there is none.
    """
    if micro_batch == 1:
        raise UserError(
            "memory does not suffice for one image at a time; set optim.gradient_checkpointing=true, or choose a "
            "smaller model.preset or data.size."
        )
    return next(size for size in range(micro_batch // 2, 0, -1) if share % size == 0)


def check_resumed(then: ParallelLayout, now: ParallelLayout, out: str, elastic: bool) -> None:
    """Refuse to go on with other data, or unless ``elastic`` is set, with another layout.

    Raises:
        UserError: With the difference.
    """
    if None not in (then.data, now.data) and then.data != now.data:
        raise UserError(
            f"the training images of {out}, or their captions or classes, are not those that the run began with; "
            "restore them, or choose another 'out' (model.init_from takes the weights along)."
        )
    if not then.same_sums(now) and not elastic:
        raise UserError(
            f"the run in {out} was made by {then}, and this is {now}: losses would agree within rounding only. "
            "Start it as before, or add --elastic to go on like this."
        )
