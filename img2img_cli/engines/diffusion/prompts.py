"""Weighted words and prompts longer than one window, for models that read with CLIP alone.

A prompt that needs neither never comes here: the pipeline encodes it itself, to the same bytes as ever.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from img2img_cli.engines.module_calls import wrap_method
from img2img_cli.engines.traits import find_traits

if TYPE_CHECKING:
    import torch

# The decimal point and the missing space keep '(16:9)' and '(at 12:30)' what they are.
_WEIGHTED = re.compile(r"\(([^()]*[^()\s][^()]*):(\d?\.\d+|\d\.\d*)\)")
READERS = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"), ("tokenizer_3", "text_encoder_3"))
WINDOW = 77


def split_weights(prompt: str) -> list[tuple[str, float]]:
    """The parts of a prompt and how much each counts: `(words:1.3)` is weighted, all else counts 1.

    Groups do not nest. Other parentheses, and plus and minus signs, are text.
    """
    parts, end = [], 0
    for match in _WEIGHTED.finditer(prompt):
        parts += [(prompt[end : match.start()], 1.0), (match[1], float(match[2]))]
        end = match.end()
    return [(text, weight) for text, weight in [*parts, (prompt[end:], 1.0)] if text.strip()] or [("", 1.0)]


def find_readers(pipe: Any) -> list[tuple[Any, Any]]:
    """A pipeline's tokenizers and text encoders, in its order; none where an optional one is left out."""
    pairs = [(getattr(pipe, tokenizer, None), getattr(pipe, encoder, None)) for tokenizer, encoder in READERS]
    return [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer is not None and encoder is not None]


def call_in_turn(tokenizer: Any) -> None:
    """Have threads that share a tokenizer call it one after the other.

    It keeps the padding and truncation of its last call, and another thread's call would use them.
    """
    if not hasattr(tokenizer, "_tokenizer") or hasattr(tokenizer, "call_lock"):
        return
    tokenizer.call_lock = threading.Lock()

    def encode(own: Any, compute: Any, *arguments: Any, **options: Any) -> Any:
        with own.call_lock:
            return compute(*arguments, **options)

    wrap_method(tokenizer, "_encode_plus", encode)


def reads_with_clip(pipe: Any) -> bool:
    """Whether the prompt goes through CLIP alone: Stable Diffusion 1 and 2 and XL."""
    names = [type(encoder).__name__ for _, encoder in find_readers(pipe)]
    return bool(names) and all(name.startswith("CLIPText") for name in names)


class Prompts:
    """What a pipeline is given in place of prompts that its own encoder would cut off or take literally.

    Attributes:
        notes: what to tell of prompts that were cut off, a sentence each; whoever shows them takes them out.
        words: those of each embedding, in lower case.
    """

    def __init__(self, pipe: Any) -> None:
        self.notes: list[str] = []
        self.words: dict[str, tuple[str, ...]] = {}
        self._pipe, self._told = pipe, set[str]()
        self._readers = find_readers(pipe)
        accepted = inspect.signature(pipe.__call__).parameters
        takes_embeddings = "prompt_embeds" in accepted and find_traits(pipe).takes_clip_embeddings
        self._has_clip = reads_with_clip(pipe) and takes_embeddings
        self._has_pooled = "pooled_prompt_embeds" in accepted
        length = accepted.get("max_sequence_length")
        clip = reads_with_clip(pipe) or length is None
        # Of several readers the last takes the most; those that are no CLIP have their limit in the pipeline.
        tokenizer = self._readers[-1][0] if self._readers else None
        self._window: int = getattr(tokenizer, "model_max_length", WINDOW) if clip or length is None else length.default
        # A CLIP of fewer tokens was trained for one window; several would be strange to it.
        self._extends = self._has_clip and self._window >= WINDOW

    def share(self, pipe: Any) -> Prompts:
        """The same for a copy of the pipeline that has tokenizers of its own; what one tells the other does not."""
        shared = Prompts(pipe)
        shared.notes, shared._told, shared.words = self.notes, self._told, self.words
        return shared

    def count_windows(self, prompt: str, negative: str | None) -> int:
        """How many windows an encoded pair of prompts fills; 0 if the pipeline's own encoder takes it as it is."""
        texts = [text for text in (prompt, negative) if text is not None]
        if not self._has_clip or not any(map(self._needs_us, texts)):
            return 0
        return max(self._count_windows(p, text) for p in self._make_providers() for text in texts)

    def _needs_us(self, text: str) -> bool:
        return _WEIGHTED.search(text) is not None or (self._extends and self._count_tokens(text) > self._window)

    def _count_tokens(self, text: str) -> int:
        tokenizer = self._readers[-1][0]
        if hasattr(self._pipe, "maybe_convert_prompt"):
            text = self._pipe.maybe_convert_prompt(text, tokenizer)
        return len(tokenizer(text, truncation=False)["input_ids"])

    def embed(self, prompts: Sequence[str], negatives: Sequence[str] | None) -> dict[str, torch.Tensor]:
        """The keyword arguments that stand for prompts: `(B, windows * 77, width)` each, and `(B, width)` if pooled.

        Shorter prompts are filled up with empty windows.

        Args:
            negatives: one a prompt; None when guidance is off.
        """
        import torch

        texts = [*prompts, *(negatives or ())]
        providers = self._make_providers()
        device, dtype = self._pipe._execution_device, self._readers[-1][1].dtype
        rows = torch.cat([_embed_all(p, [self._convert(p, t) for t in texts]) for p in providers], dim=-1)
        found = {"prompt_embeds": rows.to(device, dtype)}
        if self._has_pooled:
            plain = [" ".join(text for text, _ in self._convert(providers[-1], t)) for t in texts]
            pooled = torch.cat([providers[-1].get_pooled_embeddings([text], device=device) for text in plain])
            found["pooled_prompt_embeds"] = pooled.to(device, dtype)
        if negatives is None:
            return found
        count = len(prompts)
        return {key: value[:count] for key, value in found.items()} | {
            f"negative_{key}": value[count:] for key, value in found.items()
        }

    def _make_providers(self) -> list[Any]:
        from compel import EmbeddingsProvider, ReturnedEmbeddingsType, SplitLongTextMode

        kinds = ReturnedEmbeddingsType
        kind = (
            kinds.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED if self._has_pooled else kinds.LAST_HIDDEN_STATES_NORMALIZED
        )
        return [
            EmbeddingsProvider(
                tokenizer,
                encoder,
                truncate=not self._extends,
                returned_embeddings_type=kind,
                device=self._pipe._execution_device,
                split_long_text_mode=SplitLongTextMode.PHRASES,
            )
            for tokenizer, encoder in self._readers
        ]

    def _convert(self, provider: Any, text: str) -> list[tuple[str, float]]:
        """Weighted parts, each name of a learned embedding followed by its further tokens."""
        return [
            (self._pipe.maybe_convert_prompt(part, provider.tokenizer), weight) for part, weight in split_weights(text)
        ]

    def _count_windows(self, provider: Any, text: str) -> int:
        parts = self._convert(provider, text)
        tokens, _, _ = provider.get_token_ids_and_expand_weights(
            [part for part, _ in parts], [weight for _, weight in parts], device="cpu"
        )
        return len(tokens) // int(provider.max_token_count)

    def note(self, sentences: Sequence[str]) -> None:
        """Add sentences to what is told, each once."""
        new = [sentence for sentence in sentences if sentence not in self._told]
        self._told.update(new)
        self.notes += new

    def note_cuts(self, texts: Sequence[str]) -> None:
        """Add a note for each prompt of which the model does not read all, once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._told]
        self._told.update(new)
        self.notes += self.find_cuts(new)

    def note_unused(self, pairs: Sequence[tuple[str, str | None]]) -> None:
        """Add a note for each embedding that a prompt and its negative one do not name, once an embedding."""
        found = self.find_unused(pairs)
        self.notes += [note for text, note in found.items() if text not in self._told]
        self._told.update(found)

    def find_unused(self, pairs: Sequence[tuple[str, str | None]]) -> dict[str, str]:
        """A sentence for each embedding that does nothing in one of these prompts with their negative ones."""
        found = {}
        for text, words in self.words.items():
            for prompt, negative in pairs:
                read = f"{prompt} {negative or ''}".lower()
                if not any(word in read for word in words):
                    named = " or ".join(f"'{word}'" for word in words)
                    start = " ".join(prompt.split())[:40]
                    found[text] = f"embedding {text}: prompt '{start}' does not hold its word {named}; it does nothing"
                    break
        return found

    def find_cuts(self, texts: Sequence[str]) -> list[str]:
        """A sentence for each prompt of which the model does not read all."""
        found = []
        for text in texts if self._readers and not self._extends else ():
            plain = " ".join(part for part, _ in split_weights(text)) if self._has_clip else text
            if (tokens := self._count_tokens(plain)) > self._window:
                start = " ".join(text.split())[:40]
                found.append(
                    f"prompt '{start}...': the model reads {self._window} tokens of its {tokens}; the rest is left out"
                )
        return found


def _embed_all(provider: Any, texts: Sequence[Sequence[tuple[str, float]]]) -> torch.Tensor:
    """`(B, windows * 77, width)` of one text encoder."""
    import torch

    rows = [
        provider.get_embeddings_for_weighted_prompt_fragments(
            [[text for text, _ in parts]], [[weight for _, weight in parts]], device=provider.device
        )
        for parts in texts
    ]
    longest = max(row.shape[1] for row in rows)
    filled = []
    for row in rows:
        missing = (longest - row.shape[1]) // provider.max_token_count
        filled.append(torch.cat([row, *[provider.empty_z.to(row)] * missing], dim=1))
    return torch.cat(filled)
