"""What a pipeline is told, encoded for its network, for what guidance leads away from, and for its guide.

Shapes: P prompts, B = P * num_images_per_prompt images, S condition tokens, C channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers.models.modeling_utils import ModelMixin

from attndiff.condition import Condition
from attndiff.folder.self_contained import SelfContainedPipeline
from attndiff.pipelines.call.given import given_tokens
from attndiff.pipelines.call.inputs import as_labels, as_texts
from attndiff.pipelines.call.tokenizing import tokenize


@dataclass(frozen=True)
class GivenCondition:
    """Arguments of a call by their names there, where they are explained."""

    prompt: str | list[str] | None = None
    class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None
    negative_prompt: str | list[str] | None = None
    prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None

    def of_images(self, count: int) -> "GivenCondition":
        """The same where a prompt, or a class, that is given alone is told of each of so many images."""
        alone = {name: one for name, one in vars(self).items() if isinstance(one, (str, int))}
        return replace(self, **{name: [one] * count for name, one in alone.items()})


@dataclass(frozen=True)
class EncodedCondition:
    """Conditions of B rows each.

    Args:
        positive: What the network is told; without parts if it is unconditional.
        negative: What it is told to lead away from.
        of_guide: What a guide with its own encoder is told.
        again: Makes all of them anew, with what another guidance needs: called with whether classifier-free guidance
            and autoguidance are on.
    """

    positive: Condition
    negative: Condition | None = None
    of_guide: Condition | None = None
    again: Callable[[bool, bool], "EncodedCondition"] | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor | None]:
        """What a callback may look at and change."""
        negative = self.negative or Condition()
        return {
            "prompt_embeds": self.positive.tokens,
            "prompt_attention_mask": self.positive.mask,
            "negative_prompt_embeds": negative.tokens,
            "negative_prompt_attention_mask": negative.mask,
        }

    def repeat(self, times: int) -> "EncodedCondition":
        """Every row ``times`` times, side by side."""
        conditions = (self.positive, self.negative, self.of_guide)
        repeated = (None if one is None else one.repeat(times) for one in conditions)
        return EncodedCondition(*repeated, again=self.again)


class ConditionedPipeline(SelfContainedPipeline):
    """Encodes prompts and classes; its components are those of `attndiff.pipelines.base.ImagePipeline`."""

    @property
    def network(self) -> ModelMixin | None:
        """What is told the condition."""
        return self.unet

    @property
    def _conditional(self) -> bool:
        # Without a network, a pipeline still encodes prompts.
        return self.network is None or self.network.config.cross_attention_dim is not None

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        class_labels: int | str | list[int] | list[str] | torch.Tensor | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The condition as tokens, with what guidance leads away from; arguments as in `__call__`.

        Returns:
            Tokens ``(B, S, C)`` and mask ``(B, S)`` of the condition and of its negative; None where there is none.
        """
        given = GivenCondition(
            prompt,
            class_labels,
            negative_prompt,
            prompt_embeds,
            prompt_attention_mask,
            negative_prompt_embeds,
            negative_prompt_attention_mask,
        )
        tensors = self.encode(given, num_images_per_prompt, do_classifier_free_guidance, autoguidance=False).tensors
        prompt_embeds = tensors["prompt_embeds"]
        prompt_attention_mask = tensors["prompt_attention_mask"]
        negative_prompt_embeds = tensors["negative_prompt_embeds"]
        negative_prompt_attention_mask = tensors["negative_prompt_attention_mask"]
        return prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask

    def encode(
        self,
        given: GivenCondition,
        num_images_per_prompt: int,
        classifier_free_guidance: bool,
        autoguidance: bool,
    ) -> EncodedCondition:
        """The conditions of a call.

        Args:
            given: What it was told.
            num_images_per_prompt: Rows of every prompt.
            classifier_free_guidance: Whether something is needed to lead away from.
            autoguidance: Whether the guide needs its own.

        Raises:
            ValueError: If it was told something that the model was not made for.
        """
        self._check_condition(given)
        again = partial(self.encode, given, num_images_per_prompt)
        if not self._conditional:
            return EncodedCondition(Condition(), again=again)
        inputs = None
        if given.prompt_embeds is not None:
            positive = self._given_tokens("prompt", given.prompt_embeds, given.prompt_attention_mask)
        else:
            inputs = self._encoder_inputs(as_texts(given.prompt), self._labels(given.class_labels))
            positive = self._encode(self.condition_encoder, inputs)
        negative = None
        if given.negative_prompt_embeds is not None:
            tokens = given.negative_prompt_embeds, given.negative_prompt_attention_mask
            negative = self._given_tokens("negative_prompt", *tokens, positive.rows)
        elif classifier_free_guidance:
            negative = self._encode_negative(given, positive.rows)
        of_guide = None
        if autoguidance and self.guide_encoder is not None:
            if inputs is None:
                raise ValueError("prompt_embeds: the guide encodes the condition itself; give prompt or class_labels.")
            of_guide = self._encode(self.guide_encoder, inputs)
        return EncodedCondition(positive, negative, of_guide, again).repeat(num_images_per_prompt)

    def _given_tokens(
        self, name: str, embeds: torch.Tensor, mask: torch.Tensor | None, rows: int | None = None
    ) -> Condition:
        """Tokens that the network is given as they are; arguments as of `given_tokens`."""
        if not self._conditional:
            raise ValueError(f"{name}_embeds: this model is unconditional, leave them out.")
        width = self.condition_encoder.config.hidden_size if self.condition_encoder is not None else None
        width = self.network.config.cross_attention_dim if self.network is not None else width
        return given_tokens(name, embeds, mask, width, rows, self._execution_device)

    @staticmethod
    def _encode(encoder: ModelMixin, inputs: dict) -> Condition:
        """What an encoder makes of its inputs; the mean of the tokens is left to where they can still be changed."""
        encoded = encoder(**inputs)
        return Condition(encoded.tokens, encoded.mask)

    def _encode_negative(self, given: GivenCondition, prompts: int) -> Condition:
        """What guidance leads away from: captions, or the learned null."""
        if self.condition_encoder is None:
            raise ValueError("without a condition_encoder, guidance needs negative_prompt_embeds: give them.")
        texts = as_texts(given.negative_prompt, "negative_prompt")
        if texts is None:
            return self._encode(self.condition_encoder, {"batch_size": prompts})
        if len(texts) not in (1, prompts):
            raise ValueError(f"negative_prompt has {len(texts)} texts for {prompts} prompts: give one, or one each.")
        return self._encode(self.condition_encoder, self._encoder_inputs(texts * (prompts // len(texts)), None))

    def _encoder_inputs(self, texts: list[str] | None, labels: torch.Tensor | None) -> dict:
        """Inputs of a condition encoder for captions, labels ``(P,)`` or both; an empty caption is no condition."""
        if texts is not None and labels is not None and len(texts) != len(labels):
            raise ValueError(f"prompt has {len(texts)} texts, but class_labels has {len(labels)}: give as many.")
        inputs = {"class_labels": labels}
        if texts is None:
            return inputs
        ids, mask = (tensor.to(self._execution_device) for tensor in tokenize(self.tokenizer, texts))
        if labels is None:
            inputs["drop"] = torch.tensor([not text.strip() for text in texts], device=ids.device)
        if self.text_encoder is None:
            return {**inputs, "input_ids": ids, "attention_mask": mask}
        states = self.text_encoder(ids, attention_mask=mask).last_hidden_state
        return {**inputs, "context": states, "context_mask": mask}

    def _labels(self, class_labels) -> torch.Tensor | None:
        """Class numbers ``(P,)`` on the device."""
        if class_labels is None:
            return None
        names = (self.config.data or {}).get("class_names")
        return as_labels(class_labels, self.condition_encoder.config.num_classes, names).to(self._execution_device)

    def _check_condition(self, given: GivenCondition) -> None:
        """Raise ValueError unless the kinds of condition given are those that the model was made for."""
        encodes = self.condition_encoder is not None
        texts = encodes and self.tokenizer is not None
        classes = encodes and self.condition_encoder.config.num_classes is not None
        takes = " or ".join(["a prompt"] * texts + ["class_labels"] * classes) or "prompt_embeds"
        prompt, class_labels, negative = given.prompt, given.class_labels, given.negative_prompt
        if not self._conditional:
            if any(value is not None for value in vars(given).values()):
                raise ValueError("this model is unconditional: call it without prompt, class_labels and embeds.")
            return
        _check_together(given)
        if given.prompt_embeds is None and prompt is None and class_labels is None:
            raise ValueError(f"this model needs a condition: give {takes}.")
        if (prompt is not None or negative is not None) and not texts:
            raise ValueError(f"this model does not read text: give {takes} instead of prompt and negative_prompt.")
        if class_labels is not None and not classes:
            raise ValueError(f"this model has no classes: give {takes} instead of class_labels.")


def _check_together(given: GivenCondition) -> None:
    """Raise ValueError for arguments of which one would be passed over."""
    if given.prompt_embeds is not None and (given.prompt is not None or given.class_labels is not None):
        raise ValueError("prompt_embeds stands for the whole condition: leave out prompt and class_labels.")
    if given.negative_prompt_embeds is not None and given.negative_prompt is not None:
        raise ValueError("negative_prompt_embeds stands for negative_prompt: leave one of them out.")
    for name in ("prompt", "negative_prompt"):
        if getattr(given, f"{name}_attention_mask") is not None and getattr(given, f"{name}_embeds") is None:
            raise ValueError(f"{name}_attention_mask says which of {name}_embeds count: give both.")
