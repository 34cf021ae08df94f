# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""The tokenizers of released D2VLM and E.T. Chat checkpoints in terms of ours, and back."""

import copy
import json
from os import PathLike
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .released_config import is_d2vlm
from .released_folder import ConversionError, first_line, write_json

QFORMER_MAX_TOKENS = 256
QFORMER_TOKENIZER = "google-bert/bert-base-uncased"
# The released prompt: a system message, then the roles in turn, each message stripped and closed by <|end|>. The video
# stands on a line of its own, unless the text beside it ends in white space.
CHAT_TEMPLATE = (
    "{% macro render(content) %}"
    "{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'video' %}"
    "{% if loop.previtem is defined and loop.previtem.text[-1:] not in [' ', '\\n'] %}{{ '\\n' }}{% endif %}<video>"
    "{% if loop.nextitem is defined and loop.nextitem.text[:1] != '\\n' %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
    "<|system|>{{ '\\n' }}"
    "{% if messages[0].role == 'system' %}{{ render(messages[0].content) | trim }}"
    "{% else %}You are a helpful AI assistant.{% endif %}<|end|>"
    "{% for message in messages if message.role != 'system' %}"
    "{{ '\\n' }}<|{{ message.role }}|>{{ '\\n' }}{{ render(message.content) | trim }}<|end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n' }}<|assistant|>{{ '\\n' }}{% endif %}"
)


def build_qformer_tokenizer(vocab_file: str | PathLike) -> PreTrainedTokenizerFast:
    """
    The tokenizer of the text that the Q-Former reads: lower-casing word pieces with `[DEC]` behind the vocabulary, at
    most 256 of them, the first ones dropped.

    Args:
        vocab_file (`str` or `os.PathLike`):
            `vocab.txt` of BERT: one word piece a line. Released checkpoints use that of `bert-base-uncased`.

    Returns:
        `PreTrainedTokenizerFast`: gives the word pieces of the released code (transformers 4.44's `BertTokenizer`).

    Raises:
        ConversionError: if a special token is not in the file.

    Example:

    ```python
    >>> tokenizer = build_qformer_tokenizer("bert-base-uncased/vocab.txt")  # doctest: +SKIP
    >>> tokenizer.convert_ids_to_tokens(tokenizer("When?")["input_ids"])  # doctest: +SKIP
    ['[CLS]', 'when', '?', '[SEP]']
    ```
    """
    with open(vocab_file, encoding="utf-8") as file:
        vocab = {piece.rstrip("\n"): number for number, piece in enumerate(file)}
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    for token in special.values():
        if token not in vocab:
            raise ConversionError(f"{vocab_file} has no line {token}: it is not the vocabulary of an uncased BERT.")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocab[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        bos_token="[DEC]",  # not in the file: added at its end
        model_max_length=QFORMER_MAX_TOKENS,
        truncation_side="left",
        clean_up_tokenization_spaces=False,
    )


def read_tokenizer(folder: Path, settings: dict) -> tuple[PreTrainedTokenizerFast, int]:
    """
    The tokenizer of a released folder with what D2VLM needs: `<evi>`, `</evi>`, `<video>` behind all other ids, and
    `<|end|>`, at which the released code stops, as end of sequence.

    Args:
        folder (`Path`):
            The folder.
        settings (`dict`):
            Its config.json.

    Returns:
        `tuple[PreTrainedTokenizerFast, int]`: the tokenizer, and how many of `<evi>`, `</evi>` were added: those of an
        E.T. Chat folder, as D2VLM's training does.

    Raises:
        ConversionError: if it has no fast tokenizer, or is a D2VLM folder whose tokenizer lacks the evidence tokens.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ConversionError(f"{folder} has no tokenizer.json: copy the tokenizer files of the checkpoint there.")
    # By its file, which is what the released code ran; a class of its own could rebuild it otherwise.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    vocab = tokenizer.get_vocab()
    missing = [token for token in ("<evi>", "</evi>") if token not in vocab]
    if missing and is_d2vlm(settings):
        raise ConversionError(
            f"The tokenizer in {folder} lacks {' and '.join(missing)}: it is not the one that the checkpoint was "
            "trained with. Copy the tokenizer files that were saved with it."
        )
    for token, name in {"<evi>": "evidence_token_id", "</evi>": "evidence_end_token_id"}.items():
        if settings.get(name) not in (None, vocab.get(token)):
            raise ConversionError(
                f"{token} has the id {vocab[token]} in the tokenizer and {settings[name]} in config.json: copy the "
                "tokenizer files that were saved with the checkpoint."
            )
    if "<|end|>" not in vocab:
        raise ConversionError(f"The tokenizer in {folder} lacks <|end|>: it is not that of Phi-3.")
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, len(missing)


def chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The released prompt of Phi-3; it begins with a start token if the tokenizer puts one."""
    starts = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return ("{{ bos_token }}" if starts else "") + CHAT_TEMPLATE


def find_qformer_vocab(folder: Path, given: str | None = None) -> Path:
    """
    The vocabulary of the Q-Former's tokenizer, which the released code takes from `bert-base-uncased`.

    Args:
        folder (`Path`):
            Released folder; `vocab.txt` or `qformer_tokenizer/vocab.txt` in it is used if there is one.
        given (`str`, *optional*):
            A `vocab.txt`, a folder with it, or a Hub repository with it.

    Returns:
        `Path`

    Raises:
        ConversionError: if it is not here and cannot be downloaded.
    """
    places = [Path(given), Path(given, "vocab.txt")] if given else [folder / "qformer_tokenizer", folder]
    places = [place if place.suffix == ".txt" else place / "vocab.txt" for place in places]
    for place in places:
        if place.is_file():
            return place
    try:
        return Path(hf_hub_download(given or QFORMER_TOKENIZER, "vocab.txt"))
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        raise ConversionError(
            f"The vocabulary of the Q-Former, vocab.txt of {given or QFORMER_TOKENIZER}, is not here and cannot be "
            f"downloaded ({first_line(error)}). Put it into {folder / 'qformer_tokenizer'}, or name a folder "
            "that has it with --qformer-tokenizer."
        ) from error


def write_released_tokenizer(tokenizer: PreTrainedTokenizerFast, eos_token_id: int, folder: Path) -> None:
    """
    Writes tokenizer files that transformers 4.44, with which the released code runs, can read: without `<video>`.

    Args:
        tokenizer (`PreTrainedTokenizerFast`):
            Ours.
        eos_token_id (`int`):
            End of sequence there.
        folder (`Path`):
            Where to.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<video>"]
    content["truncation"] = content["padding"] = None
    if "merges" in content["model"]:  # pairs are strings there
        content["model"]["merges"] = [
            pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]
        ]
    named = {name: getattr(tokenizer, name) for name in ("bos_token", "unk_token", "pad_token")}
    named = {name: token for name, token in named.items() if token is not None}
    named["eos_token"] = tokenizer.convert_ids_to_tokens(eos_token_id)
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    named["additional_special_tokens"] = [token for token in special if token not in named.values()]
    settings = {
        **named,
        "added_tokens_decoder": {str(token.pop("id")): token for token in copy.deepcopy(content["added_tokens"])},
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", named)


def write_qformer_vocab(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes `vocab.txt` of the Q-Former's tokenizer, without `[DEC]`, which the released code adds."""
    pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    lines = [piece for piece, _ in pieces if piece != tokenizer.bos_token]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
