"""Captions to tokens: a byte-pair tokenizer trained on the captions themselves."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

START, PAD = "<s>", "<pad>"


def train_tokenizer(captions: Iterable[str], vocab_size: int = 2048, max_length: int = 24) -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer (arXiv 1508.07909) on captions.

    Bytes are its alphabet, so no text is unknown to it; case and compatibility forms are folded. Every text begins
    with a start token, so that even an empty one has something to attend to.

    Args:
        captions: The training captions.
        vocab_size: Tokens at most.
        max_length: Tokens of a text at most, the start token included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, model_max_length=max_length
    )
