"""A student that samples in one to four calls of the network.

Consistency tuning (ECT: Geng et al., arXiv 2406.14548). A consistency function leads from any point ``x_t`` of a path
of the probability flow to the path's clean end. In flow form it is ``f(x_t, t) = x_t - t v(x_t, t)``, which is ``x_t``
itself at ``t = 0``, and a trained flow model is close to it at small steps already. Training makes it agree with its
own value at a slightly lower level ``r`` of the same path, and the step from ``t`` to ``r`` shrinks over the run.

Without guidance the path's direction is that from the image to the noise (Eq. 7 there: no second network is needed).
With guidance it is the guided velocity of the frozen teacher (Luo et al., arXiv 2310.04378, section 4.3), so that one
call of the student does what two of the teacher do.

The step from ``t`` to ``r`` is a share of ``t``, a quarter at first and an eighth at last: a guided teacher's path
bends little in an eighth, and errors add up over fewer steps. (Ending at 1/256 a run of 120 steps fell to noise; at
1/16 with thrice the learning rate 523 steps left speckles, and 1.13 times the teacher's distance at 4 steps.)

Shapes: B batch, C channels, H rows, W columns.
"""

import copy
import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from attndiff.diffusion.paths import expand
from attndiff.errors import UserError
from attndiff.training.batches import Batch
from attndiff.training.config import DistillConfig
from attndiff.training.heads.adversary import Adversary, tap
from attndiff.training.heads.denoising import DenoisingModel, mean_of_samples

JUDGED_AT = -1.0  # mean logit of the noise under which images are judged, most often a quarter of the whole
HUBER = 0.00054  # of pseudo-Huber distances, a root mean square over pixels (arXiv 2310.14189, section 3.3)


class StudentModel(DenoisingModel):
    """The teacher's network, tuned until one call crosses the whole path.

    Args:
        source: The teacher, a flow-matching model; it becomes the student, and a frozen copy stays as it was.
        settings: How to distil.

    Raises:
        UserError: If the teacher's objective is not flow matching, or it has no condition to guide by.
    """

    preview_steps = None

    def __init__(self, source: DenoisingModel, settings: DistillConfig):
        super().__init__(source.unet, source.condition_encoder, source.objective)
        if self.objective.name != "flow":
            raise UserError(
                f"distill: the objective of model.init_from is {self.objective.name!r}, and students are made of "
                "'flow' models; train one with objective.name=flow."
            )
        if settings.guidance_scale > 1 and self.condition_encoder is None:
            raise UserError("distill: an unconditional model has no guidance; set distill.guidance_scale to 1.")
        self.settings = settings
        self.judged = settings.adversarial_from == 0
        adversarial = settings.adversarial_weight > 0
        guided = settings.guidance_scale > 1
        # In a tuple, the teacher is no submodule: it is neither trained, averaged nor stored.
        self._teacher = (copy.deepcopy(source).eval().requires_grad_(False),) if guided or adversarial else ()
        self.adversary = Adversary(self.teacher.unet) if adversarial else None
        self._features = tap(self.teacher.unet) if adversarial else []
        self.register_buffer("gap", torch.tensor(settings.first_gap), persistent=False)

    @property
    def teacher(self) -> DenoisingModel:
        """The frozen teacher, where one is needed."""
        return self._teacher[0]

    def _apply(self, fn, recurse: bool = True):
        for teacher in self._teacher:  # goes along to another device
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def student(self) -> dict:
        """What the pipeline stores of it: the levels of each number of steps, and the guidance it has learned.

        Levels ``(1 - i / n) ** p`` by the Frechet distance of the bundled student's samples to training images, 2 and 4
        steps, in the features of a classifier of quarter turns and one of styles: p = 1/2 0.26, 0.17 and 2.5, 2.2; 3/4
        0.29, 0.17 and 2.2, 1.8; 1 0.34, 0.19 and 2.3, 1.7; 3/2 0.43, 0.22 and 3.0, 1.5 (its teacher 0.22 and 2.5).
        """
        sigmas = {str(steps): [(1 - i / steps) ** 0.75 for i in range(steps)] for steps in self.settings.steps}
        return {"sigmas": sigmas, "guidance_scale": self.settings.guidance_scale}

    def make_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Multistep consistency sampling (arXiv 2303.01469, Algorithm 1): to the clean end, and back with new noise."""
        return FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)

    def set_progress(self, share: float) -> None:
        """Shrink the step along the path, geometrically, and let the discriminator in when its time has come."""
        self.judged = share >= self.settings.adversarial_from
        first, last = self.settings.first_gap, self.settings.last_gap
        self.gap.fill_(math.exp((1 - share) * math.log(first) + share * math.log(last)))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Loss of every sample, ``(B,)`` float32; the batch is that of `DenoisingModel`."""
        loss = self.consistency_loss(batch)
        if self.adversary is None:
            return loss
        if not self.judged:  # its weights take part, as processes must all agree on that
            return loss + 0.0 * sum(p.sum() for p in self.adversary.parameters())
        return loss + self.adversarial_loss(batch)

    def consistency_loss(self, batch: Batch) -> torch.Tensor:
        """Distance ``(B,)`` of the ends that ``x_t`` and a slightly cleaner ``x_r`` of its path lead to."""
        x0, noise = batch["images"], batch["noise"]
        t = self.objective.draw_levels(batch["normal"])  # (B,)
        r = t * (1 - self.gap)
        x_t = self.objective.add_noise(x0, noise, t)
        end = self.end_of_path(x_t, t, batch)
        with torch.no_grad():
            x_r = x_t + expand(r - t, x_t) * self._velocity(x_t, t, batch)
            target = self.end_of_path(x_r, r, batch)
        distance = (mean_of_samples((end - target).square()) + HUBER**2).sqrt() - HUBER
        return distance / (t - r)

    def end_of_path(self, x: torch.Tensor, level: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The consistency function: the clean image ``(B, C, H, W)`` float32 that a noisy one leads to."""
        return self.objective.denoised(x, self.predict(x, level, batch).float(), level)

    def _velocity(self, x: torch.Tensor, level: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Direction of the path ``(B, C, H, W)``: towards the noise, or as the guided teacher has it."""
        scale = self.settings.guidance_scale
        if scale == 1:
            return batch["noise"] - batch["images"]
        everything = torch.ones_like(batch["drop"])
        plain, _ = self._ask_teacher(x, level, {**batch, "drop": everything})
        led, _ = self._ask_teacher(x, level, {**batch, "drop": ~everything})
        return plain + scale * (led - plain)

    def _ask_teacher(self, x: torch.Tensor, level: torch.Tensor, batch: Batch):
        """The teacher's prediction ``(B, C, H, W)`` float32, and its tapped features, ``(B, H, W, C)`` each."""
        prediction, features = self.teacher.predict(x, level, batch).float(), list(self._features)
        self._features.clear()
        return prediction, features

    def adversarial_loss(self, batch: Batch) -> torch.Tensor:
        """Hinge losses ``(B,)`` of the student and of the discriminator together.

        Both see images under new noise through the frozen teacher's features (LADD, arXiv 2403.12015, section 3). Each
        loss reaches its own parameters only, so that one backward pass serves the two.
        """
        x0, noise = batch["images"], batch["noise"]
        fake = self.end_of_path(noise, torch.ones_like(batch["normal"]), batch)
        # Another sample's draws are as good as new ones, and leave no random state to restore.
        level, fresh = torch.sigmoid(batch["normal"].roll(1) + JUDGED_AT), noise.roll(1, dims=0)
        shown = {**batch, "drop": torch.zeros_like(batch["drop"])}

        def features(images: torch.Tensor) -> list[torch.Tensor]:
            return self._ask_teacher(self.objective.add_noise(images, fresh, level), level, shown)[1]

        of_fake = features(fake)
        with torch.no_grad():
            of_real = features(x0)
        generator = -self.adversary(of_fake, frozen=True).mean(dim=1)
        verdicts = self.adversary(of_real), self.adversary([f.detach() for f in of_fake])  # (B, N) each
        discriminator = (1 - verdicts[0]).relu().mean(dim=1) + (1 + verdicts[1]).relu().mean(dim=1)
        return self.settings.adversarial_weight * generator + discriminator
