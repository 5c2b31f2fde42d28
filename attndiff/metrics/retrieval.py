"""Which caption fits a picture: an image tower and a bag of tokens in one space, trained on real images.

The measure is R-precision (arXiv 1711.10485, section 4): how often a picture's own caption is the nearest one among
it and others drawn at random.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from attndiff.data.tokenizer import train_tokenizer
from attndiff.metrics.extractors.classifier import ConvTrunk, fit, jitter

CANDIDATES = 50


class CaptionRetrieval(nn.Module):
    """Two towers whose unit vectors agree where picture and caption do.

    Args:
        tokenizer: Of the captions.
        channels: Channels of the images.
        width: Of the image tower, a `ConvTrunk`.
        dim: Of the common space.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, channels: int = 3, width: int = 48, dim: int = 128):
        super().__init__()
        self.tokenizer = tokenizer
        self.trunk = ConvTrunk(channels, width)
        self.project = nn.Linear(self.trunk.out_features, dim)
        self.tokens = nn.EmbeddingBag(len(tokenizer), dim, mode="mean", padding_idx=tokenizer.pad_token_id)
        self.mix = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def ids(self, captions: list[str]) -> torch.Tensor:
        """Token ids ``(B, T)`` int64."""
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Unit vectors ``(B, dim)`` of token ids ``(B, T)``."""
        x = self.tokens(ids)
        return F.normalize(x + self.mix(x), dim=1)

    def image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors ``(B, dim)`` of images ``(B, C, H, W)`` in [-1, 1]."""
        return F.normalize(self.project(self.trunk(images)), dim=1)

    @torch.no_grad()
    def similarity(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Cosine ``(N, P)`` of every image with every caption."""
        seen = torch.cat([self.image(chunk) for chunk in images.split(256)])
        return seen @ self.text(self.ids(captions).to(seen.device)).T


def contrastive_loss(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE (arXiv 2103.00020, Fig. 3) where several pairs of a batch may share a caption.

    Args:
        similarity: ``(B, B)`` scaled cosines, images by captions.
        same: ``(B, B)`` bool, which pairs have the same name.
    """
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def new_retrieval(
    names: list[str],
    captions: list[list[str]],
    channels: int,
    seed: int = 0,
    max_length: int = 16,
    width: int = 48,
) -> CaptionRetrieval:
    """An untrained model whose tokenizer knows the captions and reads ``max_length`` tokens of each."""
    tokenizer = train_tokenizer([*names, *(c for several in captions for c in several)], max_length=max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CaptionRetrieval(tokenizer, channels, width).eval()


def train_retrieval(
    model: CaptionRetrieval,
    images: torch.Tensor,
    names: list[str],
    captions: list[list[str]],
    epochs: int = 20,
    seed: int = 0,
) -> None:
    """Train a model of `new_retrieval` in place.

    Args:
        model: The model.
        images: ``(N, C, H, W)`` float in [-1, 1].
        names: Name of every image; images of one name are no negatives of each other.
        captions: What may be said of every image, the name among it; one is drawn at each visit.
        epochs: Visits to every image.
        seed: Of order, choice and augmentation.
    """
    generator = torch.Generator().manual_seed(seed)
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    numbers = torch.tensor([number[name] for name in names])
    ids = [model.ids(several) for several in captions]

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(batch), generator=generator).tolist()
        chosen = torch.stack([ids[i][int(u * len(ids[i]))] for i, u in zip(batch.tolist(), draws, strict=True)])
        seen = model.image(jitter(images[batch], generator))
        return contrastive_loss(
            model.log_scale.exp().clamp(max=100) * seen @ model.text(chosen).T,
            numbers[batch, None] == numbers[batch],
        )

    fit(model, loss_of, len(images), epochs, 256, 3e-3, generator)


def caption_ranks(
    similarity: torch.Tensor,
    own: torch.Tensor,
    candidates: int = CANDIDATES,
    seed: int = 0,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rank of each picture's own caption among it and ``candidates - 1`` others drawn at random; 1 is the best.

    Args:
        similarity: ``(N, P)`` of every picture with every caption of the pool, all captions different.
        own: ``(N,)`` int64, which caption is the picture's.
        candidates: Captions to choose among.
        seed: Of the draw.
        allowed: ``(N, P)`` bool, which captions may be drawn for a picture, all of them where there are fewer; any by
            default.

    Returns:
        ``(N,)`` int64; ties count against the own caption.

    Raises:
        ValueError: If the pool is smaller than ``candidates``.
    """
    n, pool = similarity.shape
    if pool < candidates:
        raise ValueError(f"{pool} captions are too few to choose among {candidates}")
    order = torch.rand(n, pool, generator=torch.Generator().manual_seed(seed))
    order[torch.arange(n), own] = torch.inf
    if allowed is not None:
        order[~allowed] = torch.inf
    place, chosen = (part[:, : candidates - 1] for part in order.sort(1))
    no_worse = similarity.gather(1, chosen) >= similarity.gather(1, own[:, None])
    return 1 + (no_worse & place.isfinite()).sum(1)


def own_caption_ranks(
    model: CaptionRetrieval,
    images: torch.Tensor,
    captions: list[str],
    pool: list[str],
    seed: int = 0,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rank ``(N,)`` of each image's caption among it and others of a pool, `CANDIDATES` or as many as there are.

    Args:
        model: What judges.
        images: ``(N, C, H, W)`` in [-1, 1].
        captions: One an image, each in the pool.
        pool: Different captions.
        seed: Of the draw of the others.
        allowed: As of `caption_ranks`.
    """
    own = torch.tensor([pool.index(caption) for caption in captions])
    return caption_ranks(model.similarity(images, pool).cpu(), own, min(CANDIDATES, len(pool)), seed, allowed)


def captions_within(groups: list[str], captions: list[str], pool: list[str]) -> torch.Tensor:
    """``(N, P)`` bool: which captions of a pool stand in a row of the same group as each row.

    Args:
        groups: Of the rows.
        captions: Of the rows, each in the pool.
        pool: Different captions.
    """
    place, numbers = ({one: i for i, one in enumerate(dict.fromkeys(of))} for of in (pool, groups))
    rows = torch.tensor([numbers[group] for group in groups])
    said = torch.zeros(len(numbers), len(pool), dtype=torch.bool)
    said[rows, torch.tensor([place[caption] for caption in captions])] = True
    return said[rows]
