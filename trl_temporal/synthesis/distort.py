# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Backends that make a caption or an answer false: rules, a local language model, an OpenAI-compatible endpoint.

A backend is a callable `distort(texts, contexts, rngs) -> list[str | None]` on a batch: a context says where its text
comes from (`captions`, all captions of the row; `task`; `row_id`), a generator makes the choices of its text, and
`None` stands for a text that could not be made false. Backends load what they need at the first call, so that they
can be sent to other processes before it.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME

from ..data.grammar import EVI, EVI_END, normalize
from .answer_cache import AnswerCache
from .distort_rules import RuleDistort
from .endpoint import ChatEndpoint

__all__ = ["PROMPT", "OpenAIDistort", "RuleDistort", "TransformersDistort", "distortion_fault"]

PROMPT = """\
The sentence below is true of one moment of a video. Write it again so that it is clearly false of that moment: give \
one or two facts another value, such as who acts, what they do, what they do it with, or where. Leave everything else \
as it is, with the same language, style and length. The new sentence must sound just as likely, and must not say that \
something is absent. Reply with the new sentence and nothing else.

Sentence: {text}"""

MAX_LENGTH_RATIO = 1.5
# A short text may grow by this many characters: "red" becomes "yellow".
LENGTH_SLACK = 8
# Sampling gets more daring from draw to draw.
TEMPERATURE_STEP = 0.1
SEEDS = 2**31 - 1


def distortion_fault(text: str, answer: str) -> str | None:
    """
    Say why a language model's answer is no distortion of a text.

    Args:
        text (`str`):
            The true text.
        answer (`str`):
            What the model wrote.

    Returns:
        `str` or `None`: `"empty"`, `"unchanged"` (but for punctuation, case and white space), `"too_long"` (more than
        1.5 times the words or characters; 8 characters more are always allowed), `"marker"` (it holds `<evi>` or
        `</evi>`), or `None` for a good answer.

    Example:
        >>> from trl_temporal.synthesis.distort import distortion_fault
        >>> distortion_fault("A man waves", "a man waves.")
        'unchanged'
    """
    if not answer.strip():
        return "empty"
    if EVI in answer or EVI_END in answer:
        return "marker"
    if normalize(answer) == normalize(text):
        return "unchanged"
    most_characters = max(MAX_LENGTH_RATIO * len(text), len(text) + LENGTH_SLACK)
    if len(answer.split()) > MAX_LENGTH_RATIO * len(text.split()) or len(answer) > most_characters:
        return "too_long"
    return None


def _clean(answer: str) -> str:
    """The sentence of an answer: without the thoughts before it, line breaks, and quotes around it."""
    answer = answer.encode(errors="ignore").decode()  # half a surrogate pair fits into no data set
    answer = " ".join(answer.rpartition("</think>")[2].split())
    for first, last in ('""', "''", "“”", "‘’", "«»"):
        if len(answer) > 2 and answer[0] == first and answer[-1] == last:
            return answer[1:-1].strip()
    return answer


class _LanguageModelDistort:
    """Asks, judges and asks again; a backend fills the cache with the answers to new requests."""

    def __init__(
        self,
        model: str,
        prompt: str,
        num_draws: int,
        temperature: float,
        max_tokens: int,
        cache_dir: str | os.PathLike | None,
    ):
        if "{text}" not in prompt:
            raise ValueError("the prompt has no place for the text; write {text} where it belongs")
        if num_draws < 1:
            raise ValueError(f"num_draws is {num_draws}; it must be at least 1")
        self.model = model
        self.prompt = prompt
        self.num_draws = num_draws
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.cache = AnswerCache(Path(HF_HOME) / "trl_temporal" / "distort" if cache_dir is None else cache_dir)
        self.report: Counter = Counter()

    def __call__(
        self, texts: Sequence[str], contexts: Sequence[dict[str, Any]], rngs: Sequence[np.random.Generator]
    ) -> list[str | None]:
        """
        Falsify texts.

        Args:
            texts (`Sequence[str]`):
                Captions or answers.
            contexts (`Sequence[dict]`):
                Of each text, where it comes from; not used.
            rngs (`Sequence[np.random.Generator]`):
                Of each text, what draws the seed of its sampling.

        Returns:
            `list[str | None]`: the false texts; `None` where no draw gave one.
        """
        # One draw from each generator, however many answers are rejected.
        seeds = [int(rng.integers(SEEDS)) for _, _, rng in zip(texts, contexts, rngs, strict=True)]
        self.report["texts"] += len(texts)
        results: list[str | None] = [None] * len(texts)
        open_indices = list(range(len(texts)))
        for draw in range(self.num_draws):
            drawn = {i: self._request(texts[i], (seeds[i] + draw) % SEEDS, draw) for i in open_indices}
            keys = {i: self._key(request) for i, request in drawn.items()}
            new = {keys[i]: request for i, request in drawn.items() if keys[i] not in self.cache}
            self.report["cached"] += len(keys) - len(new)
            self.report["asked"] += len(new)
            self._ask(new)
            still_open = []
            for i in open_indices:
                if keys[i] not in self.cache:
                    self.report["refused"] += 1
                    continue
                answer = self.cache[keys[i]]
                fault = distortion_fault(texts[i], answer)
                if fault is None:
                    results[i] = answer
                    self.report["accepted"] += 1
                else:
                    self.report[f"rejected_{fault}"] += 1
                    still_open.append(i)
            open_indices = still_open
            if not open_indices:
                break
        self.report["gave_up"] += len(open_indices)
        return results

    def _request(self, text: str, seed: int, draw: int) -> dict[str, Any]:
        return {
            "model": self.model,
            # Not `str.format`: a prompt may hold braces.
            "messages": [{"role": "user", "content": self.prompt.replace("{text}", text)}],
            "temperature": round(self.temperature + draw * TEMPERATURE_STEP, 3),
            "seed": seed,
            "max_tokens": self.max_tokens,
        }

    def _key(self, request: dict[str, Any]) -> str:
        content = json.dumps([type(self).__name__, request], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _ask(self, new: dict[str, dict[str, Any]]) -> None:
        """Put the answers to new requests into the cache; one that is cut off counts as empty."""
        raise NotImplementedError


class OpenAIDistort(_LanguageModelDistort):
    """
    Makes captions and answers false with a language model behind an OpenAI-compatible endpoint, such as a vLLM server.

    Every answer is kept on disk by the hash of its request, so that a run that is repeated, or goes on after a crash,
    gives the same texts and asks nothing twice. An answer that is empty, cut off, too long or changes no word is
    rejected and drawn again with another seed and a higher temperature. Where the environment variable
    `OPENAI_API_KEY` is set, it is sent.

    Args:
        base_url (`str`):
            Where the endpoint is, as OpenAI's client takes it: `http://localhost:8000/v1`.
        model (`str`):
            Name of the model.
        prompt (`str`, *optional*):
            What is asked, with `{text}` where the text belongs. Defaults to `PROMPT`.
        num_draws (`int`, *optional*, defaults to `3`):
            How often a text is tried.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of the first draw; 0.1 more for each further one.
        max_tokens (`int`, *optional*, defaults to `256`):
            Longest answer. A model that thinks aloud needs more.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder of the answers. Defaults to `trl_temporal/distort` in `HF_HOME`, the home of Hugging Face libraries.
        concurrency (`int`, *optional*, defaults to `32`):
            Requests on their way at the same time.
        timeout_s (`float`, *optional*, defaults to `120.0`):
            Seconds without a sign of the endpoint after which a request is sent again.
        num_retries (`int`, *optional*, defaults to `6`):
            How often a request is sent again after a timeout, a lost connection or a status such as 429 or 503. A
            `Retry-After` of the endpoint is obeyed.
        backoff_s (`float`, *optional*, defaults to `1.0`):
            Wait before the second retry, doubled for each further one up to 60 seconds.

    Attributes:
        report (`collections.Counter`):
            Numbers of `texts`, requests `asked` and answers `cached`, HTTP `retries`, answers `accepted` and
            `rejected_...`, texts that the endpoint `refused`, and texts where all draws were rejected (`gave_up`).

    Raises:
        `ConnectionError`: the endpoint cannot be reached, fails after all retries, or refuses the whole batch. Answers
            that came before are kept.

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.distort import OpenAIDistort
        >>> distort = OpenAIDistort("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct")
        >>> distort(["A man opens a door"], [{}], [np.random.default_rng(0)])  # doctest: +SKIP
        ['A man closes a window']
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        prompt: str = PROMPT,
        num_draws: int = 3,
        temperature: float = 0.7,
        max_tokens: int = 256,
        cache_dir: str | os.PathLike | None = None,
        concurrency: int = 32,
        timeout_s: float = 120.0,
        num_retries: int = 6,
        backoff_s: float = 1.0,
    ):
        super().__init__(model, prompt, num_draws, temperature, max_tokens, cache_dir)
        self.endpoint = ChatEndpoint(
            base_url, concurrency=concurrency, timeout_s=timeout_s, num_retries=num_retries, backoff_s=backoff_s
        )

    def _ask(self, new: dict[str, dict[str, Any]]) -> None:
        if not new:
            return
        num_retries, refusals = self.endpoint.ask(
            new, self._keep, f"the answers so far are kept in {self.cache.folder}"
        )
        self.report["retries"] += num_retries
        if len(refusals) == len(new) and not self.report["accepted"]:
            words = next(iter(refusals.values()))
            raise ConnectionError(f"{self.endpoint.url} refuses every request: {words}. Mend the settings.")

    def _keep(self, key: str, answer: str) -> None:
        self.cache.add(key, _clean(answer))


class TransformersDistort(_LanguageModelDistort):
    """
    Makes captions and answers false with a local language model, in batches.

    A text gets the same answer in any batch: its noise comes from a generator of its own. Answers are judged, drawn
    again and kept on disk as by [`OpenAIDistort`]. The model's chat template is used where it has one; without one,
    the first line of its continuation is the answer.

    Args:
        model (`str`):
            Name on the Hub, or folder, of a model that `AutoModelForCausalLM` loads. It is loaded when the first text
            is not in the cache, to a GPU where there is one.
        prompt (`str`, *optional*):
            What is asked, with `{text}` where the text belongs. Defaults to `PROMPT`.
        num_draws (`int`, *optional*, defaults to `3`):
            How often a text is tried.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature of the first draw; 0.1 more for each further one.
        max_tokens (`int`, *optional*, defaults to `256`):
            Longest answer.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Folder of the answers. Defaults to `trl_temporal/distort` in `HF_HOME`, the home of Hugging Face libraries.
        batch_size (`int`, *optional*, defaults to `32`):
            Texts that are generated together.

    Attributes:
        report (`collections.Counter`):
            Numbers of `texts`, requests `asked` and answers `cached`, answers `accepted` and `rejected_...`, and
            texts where all draws were rejected (`gave_up`).

    Example:
        >>> import numpy as np
        >>> from trl_temporal.synthesis.distort import TransformersDistort
        >>> distort = TransformersDistort("Qwen/Qwen2.5-1.5B-Instruct")
        >>> distort(["A man opens a door"], [{}], [np.random.default_rng(0)])  # doctest: +SKIP
        ['A man closes a window']
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str = PROMPT,
        num_draws: int = 3,
        temperature: float = 0.7,
        max_tokens: int = 256,
        cache_dir: str | os.PathLike | None = None,
        batch_size: int = 32,
    ):
        super().__init__(model, prompt, num_draws, temperature, max_tokens, cache_dir)
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    def _ask(self, new: dict[str, dict[str, Any]]) -> None:
        if not new:
            return
        if self._loaded is None:
            self._loaded = self._load()
        # Prompts of one length together: less padding.
        keys = sorted(new, key=lambda key: (len(new[key]["messages"][0]["content"]), key))
        for start in range(0, len(keys), self.batch_size):
            batch = keys[start : start + self.batch_size]
            for key, answer in zip(batch, self._generate([new[key] for key in batch]), strict=True):
                self.cache.add(key, answer)

    def _load(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(self.model, dtype="auto")
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer

    def _generate(self, batch: list[dict[str, Any]]) -> list[str]:
        import torch
        from transformers import LogitsProcessorList

        model, tokenizer = self._loaded
        if tokenizer.chat_template:
            prompts = [
                tokenizer.apply_chat_template(request["messages"], tokenize=False, add_generation_prompt=True)
                for request in batch
            ]
        else:
            prompts = [request["messages"][0]["content"] + "\nNew sentence:" for request in batch]
        inputs = tokenizer(
            prompts, padding=True, return_tensors="pt", add_special_tokens=not tokenizer.chat_template
        ).to(model.device)
        temperatures = torch.tensor([request["temperature"] for request in batch], device=model.device)[:, None]
        generators = [torch.Generator(model.device).manual_seed(request["seed"]) for request in batch]

        def add_noise(input_ids, scores):
            # The largest of scores plus Gumbel noise is a sample from their softmax, row by row.
            rows = [torch.rand(scores.shape[1], generator=generator, device=scores.device) for generator in generators]
            noise = -torch.log(-torch.log(torch.stack(rows).clamp(1e-20, 1 - 1e-7)))
            return scores.float() + temperatures * noise

        output = model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=self.max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([add_noise]),
        )
        stops = model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops])
        answers = []
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            text = tokenizer.decode(ids, skip_special_tokens=True).strip()
            ended = len(ids) < self.max_tokens or not stops.isdisjoint(ids)
            if not tokenizer.chat_template:
                text, line_break, _ = text.partition("\n")
                ended = ended or bool(line_break)
            answers.append(_clean(text) if ended else "")
        return answers
