"""Tiny pipelines with random parameters, for tests: under 100 k parameters, 16 px, a call in well under a second."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from attndiff.data.tokenizer import train_tokenizer
from attndiff.diffusion.features import feature_channels
from attndiff.diffusion.objectives import make_objective
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.raster.model import PixelTransformerModel
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline
from attndiff.pipelines.pipeline_caption import AttnDiffCaptionPipeline
from attndiff.pipelines.pipeline_inpaint import AttnDiffInpaintPipeline
from attndiff.pipelines.pipeline_map_to_image import AttnDiffMapToImagePipeline
from attndiff.pipelines.pipeline_raster import AttnDiffRasterPipeline
from attndiff.pipelines.pipeline_segment import AttnDiffSegmentPipeline
from attndiff.pipelines.pipeline_upscale import AttnDiffUpscalePipeline

CAPTIONS = ["red apple, flat", "blue heart, 3d", "green house, flat", "yellow star, 3d", "rocket, flat", "cat face"]
HIDDEN = 16
RGB = {"channels": ["R", "G", "B"], "bit_depth": 8, "value_range": [0, 255], "class_names": None, "size": [16, 16]}


def randomised(make: Callable[[], torch.nn.Module], seed: int = 0, scale: float = 0.05) -> torch.nn.Module:
    """A seeded module with noise on every parameter: freshly made networks output zeros, which would hide any fault."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = make()
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * scale)
    return module.eval()


def tiny_unet(
    channels: int = 3, conditional: bool = False, seed: int = 0, size: int = 16, beside: int = 0
) -> AttentionUNet2DModel:
    """A two-level network: convolutions, then self- (and cross-)attention; ``beside`` more channels are aligned."""
    attention = {"attention": "global", "cross_attention": conditional}
    levels = [{"width": 16, "depth": 1}, {"width": 16, "depth": 1, **attention}]
    make = partial(
        AttentionUNet2DModel,
        sample_size=size,
        in_channels=channels + beside,
        out_channels=channels,
        patch_size=2,
        levels=levels,
        head_dim=8,
        embedding_dim=32,
        cross_attention_dim=HIDDEN if conditional else None,
        pooled_dim=HIDDEN if conditional else None,
    )
    return randomised(make, seed)


def tiny_encoder(seed: int = 1, **streams) -> ConditionEncoder:
    """A one-block condition encoder with the given streams, such as ``num_classes=3``."""
    return randomised(partial(ConditionEncoder, hidden_size=HIDDEN, num_layers=1, head_dim=8, **streams), seed)


def tiny_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The stock scheduler that fits the default objective."""
    return FlowMatchEulerDiscreteScheduler()


def unconditional_pipeline(channels: int = 3, data: dict | None = None, objective: dict | None = None, **components):
    """A pipeline without any condition."""
    data = RGB if data is None and channels == 3 else data
    components = {"scheduler": tiny_scheduler(), **components}
    objective = objective or {"name": "flow"}
    return quiet(AttnDiffPipeline(tiny_unet(channels), objective=objective, data=data, **components))


def class_pipeline(class_names: tuple[str, ...] = ("cat", "dog", "owl"), **components):
    """A pipeline of named classes."""
    components = {"scheduler": tiny_scheduler(), **components}
    return quiet(
        AttnDiffPipeline(
            tiny_unet(conditional=True),
            condition_encoder=tiny_encoder(num_classes=len(class_names)),
            objective={"name": "flow"},
            data={**RGB, "class_names": list(class_names)},
            **components,
        )
    )


def text_pipeline(max_length: int = 8, seed: int = 0, **components):
    """A pipeline of captions with its own tokenizer."""
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=max_length)
    encoder = tiny_encoder(seed + 1, vocab_size=len(tokenizer), max_length=max_length)
    components = {"scheduler": tiny_scheduler(), **components}
    return quiet(
        AttnDiffPipeline(
            tiny_unet(conditional=True, seed=seed),
            condition_encoder=encoder,
            tokenizer=tokenizer,
            objective={"name": "flow"},
            data=RGB,
            **components,
        )
    )


def upscale_pipeline():
    """A pipeline that makes images twice as large."""
    task = {"name": "upscale", "scale": 2, "residual_std": 0.2}
    return quiet(
        AttnDiffUpscalePipeline(
            tiny_unet(beside=3), scheduler=tiny_scheduler(), objective={"name": "flow"}, data=RGB, task=task
        )
    )


def inpaint_pipeline():
    """A pipeline that fills holes and was made for it."""
    unet = tiny_unet(beside=4)
    return quiet(
        AttnDiffInpaintPipeline(
            unet, scheduler=tiny_scheduler(), objective={"name": "flow"}, data=RGB, task={"name": "inpaint"}
        )
    )


def segment_pipeline():
    """A pipeline that tells four parts apart."""
    unet, task = tiny_unet(4, beside=3), {"name": "segment", "parts": 4}
    return quiet(
        AttnDiffSegmentPipeline(unet, scheduler=tiny_scheduler(), objective={"name": "flow"}, data=RGB, task=task)
    )


def map_pipeline():
    """A pipeline that draws images of maps of four parts."""
    task = {"name": "map_to_image", "parts": 4}
    return quiet(
        AttnDiffMapToImagePipeline(
            tiny_unet(beside=4), scheduler=tiny_scheduler(), objective={"name": "flow"}, data=RGB, task=task
        )
    )


def raster_pipeline():
    """A pipeline of captions that draws value after value."""
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=8)
    sizes = {"sample_size": 8, "hidden_size": 16, "num_layers": 1, "head_dim": 8, "value_size": 16, "value_layers": 1}
    transformer = randomised(partial(PixelTransformerModel, **sizes, cross_attention_dim=HIDDEN), seed=0)
    encoder = tiny_encoder(1, vocab_size=len(tokenizer), max_length=8)
    return quiet(AttnDiffRasterPipeline(transformer, encoder, tokenizer, data={**RGB, "size": [8, 8]}))


def caption_pipeline():
    """A pipeline that writes captions, looking at patches and through a denoising network."""
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, max_length=8)
    sizes = {"hidden_size": 16, "num_layers": 1, "head_dim": 8, "cross_attention_dim": HIDDEN, "max_length": 8}
    decoder = randomised(partial(TextDecoderModel, len(tokenizer), **sizes), seed=0, scale=0.3)
    unet, objective = tiny_unet(), make_objective({"name": "flow"})
    encoder = tiny_encoder(1, image_channels=3, image_patch_size=4, context_dim=feature_channels(unet))
    return quiet(AttnDiffCaptionPipeline(decoder, encoder, tokenizer, unet, objective.to_config(), data=RGB))


def autoguided_pipeline():
    """A pipeline of captions that an earlier model, network and encoder, guides."""
    earlier = text_pipeline(seed=9)
    return text_pipeline(guide=earlier.unet, guide_encoder=earlier.condition_encoder)


def pretrained_text_pipeline(max_length: int = 8):
    """A pipeline whose captions go through a frozen ``transformers`` encoder, here a small random CLIP text model."""
    tokenizer = word_tokenizer(max_length)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return quiet(
        AttnDiffPipeline(
            tiny_unet(conditional=True),
            tiny_scheduler(),
            condition_encoder=tiny_encoder(context_dim=24),
            tokenizer=tokenizer,
            text_encoder=randomised(partial(CLIPTextModel, config), seed=2),
            objective={"name": "flow"},
            data=RGB,
        )
    )


def word_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with begin and end tokens, in place of a pretrained one."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<bos>", "<eos>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=max_length,
    )


def quiet(pipeline: AttnDiffPipeline) -> AttnDiffPipeline:
    """The same pipeline without a progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_vae(channels: int = 3, scale: float = 0.05) -> AutoencoderKL:
    """Two pixels a latent; scaled and shifted by enough that neither can be forgotten."""
    return randomised(
        lambda: AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            scaling_factor=0.7,
            shift_factor=0.3,
        ),
        scale=scale,
    )


def student_pipeline(make, **student):
    """The pipeline of ``make`` as a few-step student."""
    student = {"sigmas": {"1": [1.0], "2": [1.0, 0.4]}, "guidance_scale": 3.0, **student}
    pipe = make(scheduler=FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    pipe.register_to_config(student=student)
    return pipe
