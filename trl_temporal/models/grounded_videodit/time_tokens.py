# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Time tokens of Grounded-VideoDiT (https://huggingface.co/papers/2508.15641, Fig. 1): times as words.

This file travels to the Hub as remote code: torch and transformers only. "Reading" numbers are the rows of the table
of ambiguities in the documentation of the model. Seconds outside: a token is the share of the duration, in 300 steps.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

# Labels and container durations are rounded: a label may pass the end of its video by this much, as in the checks of
# the rows of a data set.
DURATION_SLACK_S = 0.05


@dataclass(frozen=True)
class ParsedTimes:
    """
    What [`TimeTokens.parse`] found in a text.

    Args:
        spans (`list[list[float]]`):
            `[start_s, end_s]` in seconds, in order; a single time and a range within one step have equal ends.
        reversed (`int`):
            Ranges that end before they start: left out, or with `repair=True` swapped.
        out_of_range (`int`):
            Ranges and times with a number above that of the last token: left out.
        broken (`int`):
            Ranges with one end, more than two ends, or other dashes than `--`: left out.
    """

    spans: list[list[float]]
    reversed: int = 0
    out_of_range: int = 0
    broken: int = 0

    @property
    def num_faults(self) -> int:
        """How many times and ranges are not as they should be."""
        return self.reversed + self.out_of_range + self.broken


@dataclass(frozen=True)
class TimeTokens:
    r"""
    Tokens for times: number `i` is the time `i / num_steps` of the duration.

    Args:
        num_steps (`int`, *optional*, defaults to `300`):
            Steps of the duration. There is one token more.
        token_format (`str`, *optional*, defaults to `"<{i}>"`):
            How a token is written, with `{i}` for its number. `"<|t{i}|>"` is one that hardly any text contains.

    Raises:
        ValueError: if `num_steps` is not positive, or tokens of that format could not be told apart from text.

    Example:

    ```python
    >>> tokens = TimeTokens()
    >>> tokens.format([[2.4, 9.6]], duration_s=30.0)
    '<24>--<96>'
    >>> tokens.parse("It happens at <24>--<96>, not at <96>--<24>.", duration_s=30.0)
    ParsedTimes(spans=[[2.4, 9.6]], reversed=1, out_of_range=0, broken=0)
    ```
    """

    # Reading 23: shares of the duration. `<120>` is beyond the paper's 96 frames, and its answers are in seconds.
    num_steps: int = 300
    token_format: str = "<{i}>"

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` is {self.num_steps}: the duration has at least one step.")
        before, found, behind = self.token_format.partition("{i}")
        good = found and "{i}" not in behind and before and behind and "-" not in self.token_format
        if not good or any(character.isspace() or character.isdecimal() for character in before[-1] + behind[0]):
            raise ValueError(
                f"`token_format` is {self.token_format!r}: write `{{i}}` once, with something that is neither a digit "
                "nor a space directly before and behind it, and no dash, as in '<{i}>' or '<|t{i}|>'."
            )

    @cached_property
    def tokens(self) -> list[str]:
        """All tokens, in the order of their times."""
        return [self.token_format.replace("{i}", str(number)) for number in range(self.num_steps + 1)]

    @cached_property
    def _token(self) -> re.Pattern:
        """A token with any number, which is its group."""
        return re.compile(re.escape(self.token_format).replace(re.escape("{i}"), "(0|[1-9][0-9]*)"))

    @cached_property
    def _time(self) -> re.Pattern:
        """Tokens and dashes that hang together. Tokenizers may put spaces around added tokens when they decode."""
        token = re.escape(self.token_format).replace(re.escape("{i}"), "(?:0|[1-9][0-9]*)")
        return re.compile(rf"(?:-{{2,}}\s*)?{token}(?:\s*-{{2,}}\s*{token})*(?:\s*-{{2,}})?")

    def resolution_s(self, duration_s: float) -> float:
        """Seconds between two tokens: no answer can be more exact than half of it."""
        return duration_s / self.num_steps

    def number(self, time_s: float, duration_s: float) -> int:
        r"""
        Number of the token that is nearest to a time.

        Args:
            time_s (`float`):
                Time in seconds. Up to 0.05 s behind the end it is the last token, as labels are rounded.
            duration_s (`float`):
                Duration of the video in seconds.

        Raises:
            ValueError: if the duration is not a positive number, or the time is outside the video by more than half a
                step and the 0.05 s.

        Example:

        ```python
        >>> TimeTokens().number(2.45, duration_s=30.0)
        25
        ```
        """
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise ValueError(f"`duration_s` is {duration_s}: pass the length of the video in seconds.")
        # Reading 23: rounded. Rounding down, as code for such tokens does, makes every time half a step too early.
        number = math.floor(time_s / duration_s * self.num_steps + 0.5) if math.isfinite(time_s) else -1
        if self.num_steps < number and time_s <= duration_s + DURATION_SLACK_S:
            return self.num_steps
        if not 0 <= number <= self.num_steps:
            raise ValueError(f"The time {time_s} s lies outside the video, which is {duration_s} s long.")
        return number

    def seconds(self, number: int, duration_s: float) -> float:
        """Time in seconds of the token with that number."""
        if not 0 <= number <= self.num_steps:
            raise ValueError(f"There is no time token {number}: they go from 0 to {self.num_steps}.")
        return number / self.num_steps * duration_s

    def format(self, spans: Sequence[Sequence[float]], duration_s: float) -> str:
        r"""
        Spans as text: `<a>--<b>`, joined by `", "`.

        Args:
            spans (`Sequence` of `[start_s, end_s]`):
                Spans in seconds.
            duration_s (`float`):
                Duration of the video in seconds.

        Raises:
            ValueError: if a span is reversed or outside the video.
        """
        written = []
        for number, (start_s, end_s) in enumerate(spans):
            if start_s > end_s:
                raise ValueError(
                    f"Span {number}, [{start_s}, {end_s}] s, ends before it starts: swap its ends if it is reversed."
                )
            start, end = (self.tokens[self.number(time_s, duration_s)] for time_s in (start_s, end_s))
            written.append(f"{start}--{end}")
        return ", ".join(written)

    def parse(self, text: str, duration_s: float, repair: bool = False) -> ParsedTimes:
        r"""
        Reads the ranges `<a>--<b>` and the single times `<a>` of a text. What is faulty is left out and counted.

        Args:
            text (`str`):
                Generated text.
            duration_s (`float`):
                Duration of the video in seconds.
            repair (`bool`, *optional*, defaults to `False`):
                Swap the ends of ranges that end before they start. They are counted all the same.

        Returns:
            [`ParsedTimes`]

        Example:

        ```python
        >>> TimeTokens().parse("<96>--<24>", duration_s=30.0, repair=True)
        ParsedTimes(spans=[[2.4, 9.6]], reversed=1, out_of_range=0, broken=0)
        ```
        """
        spans, is_reversed, out_of_range, broken = [], 0, 0, 0
        for found in self._time.finditer(text):
            numbers, dashes = self._token.findall(found[0]), re.findall("-+", found[0])
            if len(numbers) > 2 or dashes != ["--"] * (len(numbers) - 1):
                broken += 1
            elif not all(self._exists(digits) for digits in numbers):
                out_of_range += 1
            else:
                start, end = sorted(int(digits) for digits in numbers[:1] + numbers[-1:])
                runs_backwards = start != int(numbers[0])
                is_reversed += runs_backwards
                if repair or not runs_backwards:
                    spans.append([self.seconds(start, duration_s), self.seconds(end, duration_s)])
        return ParsedTimes(spans, is_reversed, out_of_range, broken)

    def escape(self, text: str) -> str:
        r"""
        User text in which nothing reads as a time token: a space goes behind the first character of what would.

        Args:
            text (`str`):
                Text of a user.

        Example:

        ```python
        >>> TimeTokens().escape("Is <24> a tag, and <999>?")
        'Is < 24> a tag, and <999>?'
        ```
        """
        first, rest = re.escape(self.token_format[0]), self._token.pattern[len(re.escape(self.token_format[0])) :]
        # The rest is looked at, not taken: the next token may begin in it.
        return re.sub(f"{first}(?={rest})", lambda match: match[0] + " " * self._exists(match[1]), text)

    def refuse_unknown(self, text: str) -> None:
        """
        For text in which time tokens are allowed.

        Raises:
            ValueError: if one of them has a number above that of the last token, and so would be read as letters.
        """
        for match in self._token.finditer(text):
            if not self._exists(match[1]):
                raise ValueError(
                    f"The text has {match[0]!r}, but time tokens go from {self.tokens[0]} to {self.tokens[-1]}: "
                    f"{text!r}"
                )

    def _exists(self, digits: str) -> bool:
        return len(digits) <= len(str(self.num_steps)) and int(digits) <= self.num_steps


def add_time_tokens(tokenizer: PreTrainedTokenizerBase, time_tokens: TimeTokens) -> list[int]:
    r"""
    Adds the time tokens to a tokenizer. They are ordinary tokens: `skip_special_tokens=True` keeps the times of an
    answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer, which is changed. One that has all of the tokens stays as it is.
        time_tokens ([`TimeTokens`]):
            The tokens.

    Returns:
        `list[int]`: their ids, in the order of their times.

    Raises:
        ValueError: if the tokenizer has some of the tokens, but not all, or has them as parts of words: they mean
            something else to its model.
    """
    tokens = time_tokens.tokens
    known = set(tokens) & set(tokenizer.get_vocab())
    if known and not set(tokens) <= set(tokenizer.get_added_vocab()):
        raise ValueError(
            f"The tokenizer has {len(known)} of the {len(tokens)} time tokens already, such as {min(known)!r}, with "
            f"another meaning. Choose a `token_format` other than {time_tokens.token_format!r}, as '<|t{{i}}|>'."
        )
    if not known:
        # Not normalised: a tokenizer that lowers its text, or puts a mark before it, would not find them again.
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    return tokenizer.convert_tokens_to_ids(tokens)


@torch.no_grad()
def give_time_rows(model: PreTrainedModel, token_ids: Sequence[int]) -> None:
    r"""
    Rows for new time tokens in both embeddings of a model: near the mean of the other rows, which is a token like any.
    The vocabulary grows if it is too small. It never shrinks: many models have more rows than their tokenizer tokens.

    Args:
        model (`PreTrainedModel`):
            The model, which is changed. Its rows must be whole, so not under DeepSpeed ZeRO-3.
        token_ids (`Sequence[int]`):
            Ids of the tokens, of [`add_time_tokens`], higher than those of all other tokens.

    Raises:
        ValueError: if the weights of the model are in pieces.
    """
    num_known, num_rows = min(token_ids), max(token_ids) + 1
    if hasattr(model.get_input_embeddings().weight, "ds_id"):
        raise ValueError(
            "The model is in pieces, as it is loaded under DeepSpeed ZeRO-3, so its rows cannot be read. Add the time "
            "tokens before the training arguments are made."
        )
    if num_rows > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(num_rows, mean_resizing=False)
    index = torch.tensor(token_ids)
    weights, head = [model.get_input_embeddings().weight], model.get_output_embeddings()
    if head is not None:
        weights.append(head.weight)
    # What is new is drawn the same every time: an adapter must meet what it was trained beside.
    generator = torch.Generator().manual_seed(0)
    for weight in dict.fromkeys(weights):  # once where they are tied
        known = weight[:num_known].float()
        noise = torch.randn(len(token_ids), known.shape[1], generator=generator).to(known.device) * known.std(0)
        weight[index.to(weight.device)] = (known.mean(0) + 0.1 * noise).to(weight.dtype)
    if head is not None and head.bias is not None:
        head.bias[index.to(head.bias.device)] = head.bias[:num_known].mean()


def time_token_nll(
    logits: torch.Tensor, labels: torch.LongTensor, time_token_ids: torch.LongTensor, smoothing: float = 0.0
) -> torch.Tensor:
    r"""
    Negative log-likelihood of tokens, in which a time token may have its neighbours for a target too: token `j` counts
    in proportion to `smoothing ** |i - j|` where `i` is right. Being wrong by a step then costs less than by a minute.

    Args:
        logits (`torch.Tensor` of shape `(..., vocabulary)`):
            Logits that predict the labels, so already shifted.
        labels (`torch.LongTensor` of shape `(...)`):
            Ids of the right tokens, -100 where there is none.
        time_token_ids (`torch.LongTensor` of shape `(num_steps + 1,)`):
            Ids of the time tokens, in the order of their times.
        smoothing (`float`, *optional*, defaults to `0.0`):
            At least 0 and below 1. 0 is the plain loss of a language model.

    Returns:
        `torch.Tensor` of shape `(...)`, in nats; zero where there is no label.

    Raises:
        ValueError: if `smoothing` is out of range.

    Example:

    ```python
    >>> logits, ids = torch.tensor([[9.0, 0.0, 0.0, 0.0]]), torch.tensor([1, 2, 3])
    >>> round(time_token_nll(logits, torch.tensor([3]), ids, smoothing=0.5).item(), 3)
    9.0
    ```
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` is {smoothing}: pass the factor from one token to the next, 0 <= factor < 1.")
    log_prob = logits.float().log_softmax(-1)
    nll = -log_prob.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    if smoothing:
        is_label = labels.unsqueeze(-1) == time_token_ids
        is_time = is_label.any(-1)
        right = is_label[is_time].int().argmax(-1, keepdim=True)
        step = torch.arange(len(time_token_ids), device=logits.device)
        targets = torch.pow(smoothing, (step - right).abs().float())
        targets = targets / targets.sum(-1, keepdim=True)
        smoothed = -(targets * log_prob[is_time][:, time_token_ids]).sum(-1)
        nll = nll.masked_scatter(is_time, smoothed)
    return nll.masked_fill(labels < 0, 0.0)
