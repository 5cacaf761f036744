"""The tokenizer and text encoder of the bundled model: CLIP classes of a small size."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 32
WIDTH = 192


def train_tokenizer(captions: Iterable[str], folder: Path, vocab_size: int = 3000) -> CLIPTokenizer:
    """Learn a byte-pair vocabulary from captions, save it to a folder in CLIP's format, and return the tokenizer.

    The alphabet contains all bytes, so any text in any script can be encoded.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    # As in CLIP's vocabulary, add every byte also as the end of a word, so that rare words can be spelled.
    tokens += [byte + "</w>" for byte in sorted(alphabet) if byte + "</w>" not in learnt["vocab"]]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learnt["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    trained = CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=MAX_LENGTH, pad_token=END
    )
    trained.save_pretrained(folder)
    return trained


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build an untrained `CLIPTextModel` that maps token IDs `(B, 32)` to hidden states `(B, 32, 192)`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
