"""Pairs as samples: the image and the prompt by the model's own processor, then the text's tokens behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitprune.core.errors import UserError, one_line
from vitprune.images import decode
from vitprune.model.vlm import tokens
from vitprune.model.vlm.pairs import IMAGE, Pair
from vitprune.model.vlm.tokens import Sample

PROMPT = f"{IMAGE}\n"
MASKS = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "token_type_ids",
)  # made anew when samples are put together


@dataclass(frozen=True, slots=True)
class Preparer:
    """Makes samples with a processor (image and prompt) for a model of this configuration."""

    processor: Any
    config: Any

    @property
    def image_word(self) -> str:
        """The image token as the processor writes it."""
        found = getattr(self.processor, "image_token", None)
        word = getattr(found, "content", found)
        if not isinstance(word, str):
            word = self.processor.tokenizer.convert_ids_to_tokens(tokens.image_token(self.config))
        return str(word)

    @property
    def usual(self) -> str:
        """The prompt of a pair without one: the image in the model's own template of a talk, or the image on a line."""
        if not getattr(self.processor, "chat_template", None):
            return PROMPT
        talk = [{"role": "user", "content": [{"type": "image"}]}]
        return str(self.processor.apply_chat_template(talk, add_generation_prompt=True))

    def sample(self, pair: Pair, image: Path | None = None) -> Sample:
        """The pair, with its own image or another. Raises UserError naming the pair's line."""
        prompt = (self.usual if pair.prompt is None else pair.prompt).replace(IMAGE, self.image_word)
        if (count := prompt.count(self.image_word)) != 1:
            has = f"{count} places for one image" if count else "no place for the image"
            raise UserError(f"{pair.where}: the prompt has {has}; write {IMAGE} once where it belongs")
        try:
            made = self.processor(
                images=[decode.read(image or pair.image).convert("RGB")], text=[prompt], return_tensors="pt"
            )
        except UserError:
            raise
        except Exception as error:  # processors raise whatever they like
            raise UserError(f"{pair.where}: the processor cannot prepare it ({one_line(error)})") from error
        ids, extras = made["input_ids"][0], {k: v for k, v in made.items() if k not in MASKS and isinstance(v, Tensor)}
        if not bool((ids == tokens.image_token(self.config)).any()):
            raise UserError(f"{pair.where}: no visual token comes of the prompt; is {self.image_word} the image token?")
        return self._with_text(ids, pair, {k: v.float() if v.is_floating_point() else v for k, v in extras.items()})

    def without_image(self, pair: Pair) -> Sample:
        """The pair's prompt and text as they are without the image and its tokens."""
        whole = self.sample(pair)
        keep = whole.ids != tokens.image_token(self.config)
        return Sample(whole.ids[keep], int(keep[: whole.start].sum()))

    def alone(self, pair: Pair) -> Sample:
        """The text alone: no image and no prompt; the beginning-of-text token before it where there is one."""
        ids = self.ids_of(pair.text)
        first = sorted(tokens.first_tokens(self.config))[:1]
        return Sample(torch.tensor([*first, *ids]), len(first))

    def ids_of(self, text: str) -> list[int]:
        """A text's tokens, none added."""
        return list(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_text(self, ids: Tensor, pair: Pair, extras: dict[str, Tensor]) -> Sample:
        text = self.ids_of(pair.text)
        if not text:
            raise UserError(f"{pair.where}: no token comes of the text")
        if tokens.image_token(self.config) in text:
            raise UserError(
                f"{pair.where}: the text has {self.image_word}, the image's token; it belongs to the prompt alone"
            )
        longest = getattr(getattr(self.config, "text_config", None), "max_position_embeddings", None)
        if isinstance(longest, int) and len(ids) + len(text) > longest:
            raise UserError(
                f"{pair.where}: {len(ids) + len(text)} tokens, the model reads at most {longest}; shorten it"
            )
        return Sample(torch.cat([ids, torch.tensor(text, dtype=ids.dtype)]), len(ids), extras)
