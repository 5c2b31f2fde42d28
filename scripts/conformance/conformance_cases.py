"""What `conformance.py` runs: diffusers' test classes, told how to make and call tiny networks and pipelines."""

from collections.abc import Iterator

import diffusers.pipelines
import pytest
import torch
from factories import HIDDEN, class_pipeline, pretrained_text_pipeline
from tests.models.testing_utils import (
    AttentionTesterMixin,
    BaseModelTesterConfig,
    LoraTesterMixin,
    ModelTesterMixin,
    TrainingTesterMixin,
)
from tests.pipelines.pipeline_params import (
    CLASS_CONDITIONED_IMAGE_GENERATION_BATCH_PARAMS,
    CLASS_CONDITIONED_IMAGE_GENERATION_PARAMS,
    TEXT_TO_IMAGE_BATCH_PARAMS,
    TEXT_TO_IMAGE_PARAMS,
)
from tests.pipelines.testing_utils import BasePipelineTesterConfig, PipelineTesterMixin
from tests.testing_utils import torch_device

from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline

TOKENS = 5
diffusers.pipelines.AttnDiffPipeline = AttnDiffPipeline  # where one of the tests looks for the source of a pipeline
TrainingTesterMixin.pytestmark = []  # diffusers leaves these tests out on CPUs, where they work as well


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same standard normal numbers at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch_device)


class UNetConfig(BaseModelTesterConfig):
    """A three-level network with every kind of block, and its inputs."""

    model_class = AttentionUNet2DModel
    output_shape = (3, 16, 16)

    @pytest.fixture(scope="class", autouse=True)
    def nonzero_outputs(self) -> Iterator[None]:
        """Fresh networks output zeros, in which the tests would see no difference between any two."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.init, "zeros_", lambda tensor: torch.nn.init.normal_(tensor, std=0.1))
            yield

    def get_init_dict(self) -> dict:
        return {
            "sample_size": 16,
            "levels": [
                {"width": 16, "depth": 1},
                {"width": 16, "depth": 1, "attention": "window", "window": 2, "cross_attention": True},
                {"width": 16, "depth": 1, "attention": "global", "cross_attention": True},
            ],
            "head_dim": 8,
            "embedding_dim": 32,
            "cross_attention_dim": HIDDEN,
            "pooled_dim": HIDDEN,
        }

    def get_dummy_inputs(self) -> dict:
        return {
            "sample": normal(2, 3, 16, 16),
            "noise_level": normal(2, seed=1),
            "encoder_hidden_states": normal(2, TOKENS, HIDDEN, seed=2),
            "encoder_attention_mask": torch.arange(TOKENS, device=torch_device) < torch.tensor([[TOKENS], [2]]),
            "pooled_projections": normal(2, HIDDEN, seed=3),
        }


class TestUNet(UNetConfig, ModelTesterMixin):
    pass


class TestUNetAttention(UNetConfig, AttentionTesterMixin):
    pass


class TestUNetTraining(UNetConfig, TrainingTesterMixin):
    def test_gradient_checkpointing_is_applied(self):
        super().test_gradient_checkpointing_is_applied(expected_set={"AttentionUNet2DModel"})


class TestUNetLora(UNetConfig, LoraTesterMixin):
    pass


class PipelineConfig(BasePipelineTesterConfig, PipelineTesterMixin):
    """What the text and the class pipeline have in common."""

    pipeline_class = AttnDiffPipeline
    output_shape = (3, 16, 16)
    callback_cfg_params = frozenset()

    def get_pipeline(self, **components) -> AttnDiffPipeline:
        """The pipeline, with two things that the tests cannot know.

        Our condition encoder is a text encoder, although its name does not say so; and ``safe_serialization=False``
        is an error, because it asks for pickle files: what the tests save is safetensors.
        """
        if "condition_encoder" in components and components["unet"] is None:
            components["condition_encoder"] = self.get_dummy_components()["condition_encoder"]
        pipe = super().get_pipeline(**components)
        save = pipe.save_pretrained
        pipe.save_pretrained = lambda folder, safe_serialization=True, **options: save(folder, **options)
        return pipe

    def call_inputs(self, **condition) -> dict:
        settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
        return {**condition, **settings, "generator": self.get_generator(0)}

    def test_save_load_optional_components(self, tmp_path, monkeypatch):
        """All that makes embeds is optional, so the call that needs none of it is the one with embeds."""
        embeds = {"prompt_embeds": normal(1, TOKENS, HIDDEN), "negative_prompt_embeds": normal(1, 1, HIDDEN, seed=1)}
        monkeypatch.setattr(self, "get_dummy_inputs", lambda: self.call_inputs(**embeds))
        super().test_save_load_optional_components(tmp_path)


class TestTextPipeline(PipelineConfig):
    required_input_params_in_call_signature = TEXT_TO_IMAGE_PARAMS - {"cross_attention_kwargs"}
    batch_input_params = TEXT_TO_IMAGE_BATCH_PARAMS

    def get_dummy_components(self) -> dict:
        return dict(pretrained_text_pipeline().components)

    def get_dummy_inputs(self) -> dict:
        return self.call_inputs(prompt="red apple, flat", negative_prompt="cat")


class TestClassPipeline(PipelineConfig):
    required_input_params_in_call_signature = CLASS_CONDITIONED_IMAGE_GENERATION_PARAMS
    batch_input_params = CLASS_CONDITIONED_IMAGE_GENERATION_BATCH_PARAMS

    def get_dummy_components(self) -> dict:
        return dict(class_pipeline().components)

    def get_dummy_inputs(self) -> dict:
        return self.call_inputs(class_labels=1)
