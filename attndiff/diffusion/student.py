"""How a few-step student is sampled."""

from dataclasses import dataclass

from diffusers import SchedulerMixin


@dataclass(frozen=True)
class StudentRules:
    """What a pipeline stores of a few-step student.

    Args:
        sigmas: Its noise levels by the number of steps, such as ``{"1": [1.0], "2": [1.0, 0.6]}``.
        guidance_scale: The guidance that its own prediction includes.
    """

    sigmas: dict[str, list[float]]
    guidance_scale: float

    @property
    def most_steps(self) -> int:
        """The most steps that it was made for."""
        return max(int(steps) for steps in self.sigmas)

    def levels(self, steps: int) -> list[float] | None:
        """The noise levels of a number of steps, if it was made for that."""
        return self.sigmas.get(str(steps))

    def check(self, scheduler: SchedulerMixin, guidance_scale: float) -> None:
        """Refuse what it cannot be sampled with.

        Args:
            scheduler: One that `check_scheduler` accepts.
            guidance_scale: Of the call.

        Raises:
            ValueError: If the scheduler would follow its prediction as a velocity, or guidance would be applied twice.
        """
        if not scheduler.config.get("stochastic_sampling"):
            raise ValueError(
                "scheduler: this model is a few-step student, whose every call leads to a clean image; sample it with "
                "FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)."
            )
        if guidance_scale > 1 and self.guidance_scale > 1:
            raise ValueError(
                f"guidance_scale {guidance_scale:g}: this few-step student has a guidance of "
                f"{self.guidance_scale:g} built in; leave guidance_scale out, or give 1."
            )
