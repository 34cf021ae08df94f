# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""Scores of captions: the PTB tokenizer, CIDEr, BLEU, ROUGE-L and METEOR, as dense captioning benchmarks use them."""

import importlib.util
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_TOKENIZER_JAR = "tokenizer/stanford-corenlp-3.4.1.jar"
_METEOR_JAR = "meteor/meteor-1.5.jar"
# Tokens that are no words. The tokenizer writes brackets in lower case, so they stay: "(" becomes "-lrb-".
_PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"}
_PUNCTUATION |= {".", "?", "!", ",", ":", "-", "--", "...", ";"}
# What the tokenizer takes for the end of a line.
_LINE_BREAKS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")
_TIMEOUT_S = 600.0

_CIDER_ORDERS = 4
_CIDER_SIGMA = 6.0


class CaptionToolsMissing(ImportError):
    """The package pycocoevalcap or Java is not installed; the message says which, and how to get it."""


def _package_file(name: str) -> Path:
    """A file that comes with pycocoevalcap, without importing the package."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise CaptionToolsMissing(
            'caption scores need the package pycocoevalcap: pip install "trl_temporal[caption]" (or pip install '
            "pycocoevalcap)"
        )
    return Path(spec.submodule_search_locations[0]) / name


def _jar(name: str) -> tuple[str, Path]:
    """The Java command, and a jar that comes with pycocoevalcap."""
    path = _package_file(name)
    if not path.is_file():
        raise CaptionToolsMissing(f"pycocoevalcap is installed without its file {name}: install version 1.2 again")
    java = shutil.which("java")
    if java is None:
        raise CaptionToolsMissing(
            "the PTB tokenizer and METEOR need Java, and there is no `java` on the PATH: install a runtime, for "
            "example with `apt install default-jre-headless`"
        )
    return java, path


_tokens_of: dict[str, str] = {}  # Java takes a moment to start: no text is tokenised twice


def ptb_tokenize(texts: Sequence[str]) -> list[str]:
    """
    Tokenise texts with the Stanford PTB tokenizer, as COCO's caption scorers do.

    Texts become lower case, and most punctuation is dropped. All new texts of a call go through one Java process;
    tokens of texts that came before in this Python process are remembered. Every text is tokenised as if it stood
    alone, see [`ptb_tokenize_file`].

    Args:
        texts (`Sequence[str]`):
            Texts. Line breaks in them count as spaces.

    Returns:
        `list[str]`: one string a text, its tokens separated by spaces.

    Raises:
        CaptionToolsMissing: if pycocoevalcap or Java is not installed.
        RuntimeError: if Java fails.
    """
    texts = list(texts)
    new = [text for text in dict.fromkeys(texts) if text not in _tokens_of]
    if new:
        # A word between two texts keeps them apart.
        tokens = ptb_tokenize_file([line for text in new for line in (text, "the")])
        _tokens_of.update(zip(new, tokens[::2], strict=True))
    return [_tokens_of[text] for text in texts]


def ptb_tokenize_file(lines: Sequence[str]) -> list[str]:
    """
    Tokenise the lines of one file as [`ptb_tokenize`] does, where a line can depend on the next one.

    The tokenizer keeps the full stop of a last word of one letter (`x.`) unless the next line begins a sentence, and
    that of `no.` if the next line begins with a number. Original scorers give it all captions as one file.

    Args:
        lines (`Sequence[str]`):
            Texts. Line breaks in them count as spaces.

    Returns:
        `list[str]`: one string a line, its tokens separated by spaces.

    Raises:
        CaptionToolsMissing: if pycocoevalcap or Java is not installed.
        RuntimeError: if Java fails.
    """
    java, jar = _jar(_TOKENIZER_JAR)
    if not lines:
        return []
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    text = "".join(_LINE_BREAKS.sub(" ", line) + "\n" for line in lines)
    try:
        # Lone surrogates, which no encoding takes, become question marks.
        run = subprocess.run(command, input=text.encode(errors="replace"), capture_output=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the PTB tokenizer did not finish {len(lines)} texts in {_TIMEOUT_S:.0f} s") from None
    tokenized = run.stdout.decode(errors="replace").removesuffix("\n").split("\n")
    if run.returncode or len(tokenized) != len(lines):
        raise RuntimeError(
            f"the PTB tokenizer failed on {len(lines)} texts (exit code {run.returncode}, {len(tokenized)} lines came "
            f"back): {run.stderr.decode(errors='replace').strip()[-1000:]}"
        )
    return [" ".join(token for token in line.rstrip().split(" ") if token not in _PUNCTUATION) for line in tokenized]


_CONTRACTION = re.compile(r"(?<=\w)(n't|'(?:s|m|d|ll|re|ve))\b")
_TOKEN = re.compile(
    r"n't|'(?:s|m|d|ll|re|ve)\b"  # cut off by _CONTRACTION
    r"|\d+(?:[.,:]\d+)*(?:/\d+)?[^\W_]*(?:-\w+)*"  # 3, 1,200, 3.5, 1/2, 400gm, 2-inch
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|[^\W_]+(?:[-'./&][^\W_]+)*"  # half-cup, o'clock
    r"|[()\[\]{}]|[$%&#°+=*@/]"
)
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))


def approximate_tokenize(texts: Sequence[str]) -> list[str]:
    """
    Tokenise texts about as [`ptb_tokenize`] does, without Java.

    This is an approximation for quick looks: it differs on abbreviations, units, quotes and rare symbols, so numbers
    made with it are not those of the benchmark. Nothing falls back to it unasked.

    Args:
        texts (`Sequence[str]`):
            Texts.

    Returns:
        `list[str]`: one string a text, its tokens separated by spaces.

    Example:
        >>> from trl_temporal.evaluation.metrics.captioning import approximate_tokenize
        >>> approximate_tokenize(["Don't add 1/2 cup (diced) half-cooked onions, stir."])
        ["do n't add 1/2 cup -lrb- diced -rrb- half-cooked onions stir"]
    """
    lines = []
    for text in texts:
        text = _CONTRACTION.sub(r" \1 ", text.lower().replace("’", "'"))
        lines.append(" ".join(_BRACKETS.get(token, token) for token in _TOKEN.findall(text)))
    return lines


class _Ngrams(NamedTuple):
    """Distinct n-grams of every text: arrays of one length, sorted by text and n-gram."""

    text: np.ndarray
    gram: np.ndarray  # a number per distinct n-gram, over all orders
    order: np.ndarray  # 0 for single words
    count: np.ndarray
    num_grams: int


def _ngrams(words: list[list[str]]) -> _Ngrams:
    vocabulary: dict[str, int] = {}
    tokens = np.array(
        [vocabulary.setdefault(word, len(vocabulary)) for line in words for word in line], dtype=np.int64
    )
    lengths = np.array([len(line) for line in words], dtype=np.int64)
    text = np.repeat(np.arange(len(words)), lengths)
    # Words of the same text from each place on.
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(tokens))
    texts, grams, orders = [], [], []
    gram, num_grams, offset = tokens, len(vocabulary), 0
    for order in range(_CIDER_ORDERS):
        starts = np.flatnonzero(left > order)
        if order:  # an n-gram is the one shorter by a word at its start, and its last word
            longer = gram[starts] * len(vocabulary) + tokens[starts + order]
            distinct, gram_of_start = np.unique(longer, return_inverse=True)
            gram = np.zeros(len(tokens), dtype=np.int64)
            gram[starts] = gram_of_start
            num_grams = len(distinct)
        texts.append(text[starts])
        grams.append(gram[starts] + offset)
        orders.append(np.full(len(starts), order))
        offset += num_grams
    size = max(offset, 1)
    keys, first, count = np.unique(
        np.concatenate(texts) * size + np.concatenate(grams), return_index=True, return_counts=True
    )
    return _Ngrams(keys // size, keys % size, np.concatenate(orders)[first], count, offset)


def cider(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    corpus: Sequence[Sequence[str]] | None = None,
) -> tuple[float, np.ndarray]:
    """
    CIDEr of tokenised captions: the plain one of COCO's scorer, not CIDEr-D.

    Vectors of TF-IDF weights of n-grams of 1 to 4 words are compared by their cosine, where a candidate's weight
    counts up to that of the reference, and multiplied with a Gaussian penalty (sigma 6) on the difference of lengths.
    A length is a number of word pairs, as in that scorer.

    Args:
        candidates (`Sequence[str]`):
            Tokenised captions, one an item.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of every item, at least one.
        corpus (`Sequence[Sequence[str]]`, *optional*):
            Tokenised references of all documents that the IDF is counted over. By default these are `references`:
            with a single item every n-gram is in all documents, and its score is 0.

    Returns:
        `tuple[float, np.ndarray]`: mean over items, and the array of shape `(items,)`, in `[0, 10]`. Papers print 100
        times that, so up to 1000. Captions that equal their references have 10 only where these have 4 words or more.

    Raises:
        ValueError: if an item has no reference, or the two lists differ in length.

    Example:
        >>> from trl_temporal.evaluation.metrics.captioning import cider
        >>> score, single = cider(["a b c d", "e f g"], [["a b c d"], ["x y z"]])
        >>> round(score, 6), single.round(6).tolist()
        (5.0, [10.0, 0.0])
    """
    _check_items(candidates, references)
    num_items = len(candidates)
    if not num_items:
        return 0.0, np.zeros(0)
    texts = [*candidates, *(text for of_item in references for text in of_item)]
    num_references = np.array([len(of_item) for of_item in references])
    item_of_reference = np.repeat(np.arange(num_items), num_references)
    num_scored, num_documents = len(texts), num_items
    if corpus is not None:
        num_documents = len(corpus)
        texts += [text for document in corpus for text in document]
        document_of_text = np.repeat(np.arange(num_documents), [len(document) for document in corpus])
    else:
        document_of_text = item_of_reference
    words = [text.split() for text in texts]
    ngrams = _ngrams(words)
    size = max(ngrams.num_grams, 1)

    # In how many documents an n-gram occurs.
    first = len(texts) - len(document_of_text)
    in_corpus = ngrams.text >= first
    documents = np.unique(document_of_text[ngrams.text[in_corpus] - first] * size + ngrams.gram[in_corpus])
    frequency = np.bincount(documents % size, minlength=size)
    idf = np.log(max(num_documents, 1)) - np.log(np.maximum(frequency, 1))
    weight = ngrams.count * idf[ngrams.gram]
    norm = np.zeros((len(texts), _CIDER_ORDERS))
    np.add.at(norm, (ngrams.text, ngrams.order), weight**2)
    norm = np.sqrt(norm)

    # Find every n-gram of a reference in its candidate. Texts are sorted, so the candidates' keys are, too.
    is_candidate = ngrams.text < num_items
    is_reference = (ngrams.text >= num_items) & (ngrams.text < num_scored)
    reference = ngrams.text[is_reference] - num_items
    keys = np.append(ngrams.text[is_candidate] * size + ngrams.gram[is_candidate], -1)
    wanted = item_of_reference[reference] * size + ngrams.gram[is_reference]
    place = np.searchsorted(keys[:-1], wanted)
    found = keys[place] == wanted
    reference_weight = weight[is_reference][found]
    similarity = np.zeros((len(item_of_reference), _CIDER_ORDERS))
    np.add.at(
        similarity,
        (reference[found], ngrams.order[is_reference][found]),
        np.minimum(weight[is_candidate][place[found]], reference_weight) * reference_weight,
    )
    norms = norm[:num_items][item_of_reference] * norm[num_items:num_scored]
    similarity /= np.where(norms > 0, norms, 1)

    num_pairs = np.array([max(len(line) - 1, 0) for line in words[:num_scored]])
    difference = num_pairs[:num_items][item_of_reference] - num_pairs[num_items:]
    similarity *= np.exp(-(difference**2) / (2 * _CIDER_SIGMA**2))[:, None]
    single = 10 * np.bincount(item_of_reference, similarity.mean(axis=1), minlength=num_items) / num_references
    return float(single.mean()), single


def _check_items(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates for {len(references)} lists of references; give one each")
    if any(isinstance(of_item, str) or not len(of_item) for of_item in references):
        raise ValueError("every candidate needs a list with at least one reference")


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """
    BLEU-1 to BLEU-4 of tokenised captions over the corpus, by pycocoevalcap.

    Args:
        candidates (`Sequence[str]`):
            Tokenised captions, one an item.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of every item, at least one.

    Returns:
        `np.ndarray` of shape `(4,)`: zeros for no items.

    Raises:
        CaptionToolsMissing: if pycocoevalcap is not installed.
        ValueError: if an item has no reference, or the two lists differ in length.
    """
    _check_items(candidates, references)
    _package_file("bleu")
    from pycocoevalcap.bleu.bleu import Bleu

    if not len(candidates):
        return np.zeros(4)
    scores, _ = Bleu(4).compute_score(_as_coco(references), _as_coco([[text] for text in candidates]), verbose=0)
    return np.array(scores)


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """
    ROUGE-L of tokenised captions, by pycocoevalcap.

    Args:
        candidates (`Sequence[str]`):
            Tokenised captions, one an item.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of every item, at least one.

    Returns:
        `float`: mean over items, 0 for none.

    Raises:
        CaptionToolsMissing: if pycocoevalcap is not installed.
        ValueError: if an item has no reference, or the two lists differ in length.
    """
    _check_items(candidates, references)
    _package_file("rouge")
    from pycocoevalcap.rouge.rouge import Rouge

    if not len(candidates):
        return 0.0
    score, _ = Rouge().compute_score(_as_coco(references), _as_coco([[text] for text in candidates]))
    return float(score)


def _as_coco(texts: Sequence[Sequence[str]]) -> dict[int, list[str]]:
    return {index: list(of_item) for index, of_item in enumerate(texts)}


class Meteor:
    """
    METEOR 1.5 (`-l en -norm`) in one Java process that answers any number of calls.

    The process takes some seconds to start, and runs until the `with` block ends. It is not for several threads.

    Args:
        timeout_s (`float`, *optional*, defaults to `600.0`):
            Seconds after which a call without an answer stops Java, and is an error.

    Raises:
        CaptionToolsMissing: if pycocoevalcap or Java is not installed.

    Example:

    ```python
    with Meteor() as meteor:
        score, single = meteor.score(["a dog runs"], [["a dog is running", "the dog runs"]])
    ```
    """

    # Answers of so many lines fit the pipe's buffer, so that neither side waits for the other.
    _LINES_AT_ONCE = 64

    def __init__(self, timeout_s: float = _TIMEOUT_S):
        java, jar = _jar(_METEOR_JAR)
        self._timeout_s = timeout_s
        self._statistics: dict[str, str] = {}  # by line: captions come again at other thresholds
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"],
            cwd=jar.parent,  # it looks for its paraphrases there
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Stop the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            try:
                stream.close()
            except BrokenPipeError:  # what was still in the buffer
                pass

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
        """
        METEOR of tokenised captions.

        Args:
            candidates (`Sequence[str]`):
                Tokenised captions, one an item. `|||`, which separates texts for METEOR, is taken out of them; in a
                reference it separates two references.
            references (`Sequence[Sequence[str]]`):
                Tokenised references of every item, at least one.

        Returns:
            `tuple[float, np.ndarray]`: the score of the corpus, from the sums of all counts (not a mean), and those of
            the items, of shape `(items,)`; both in `[0, 1]`. 0 for no items.

        Raises:
            RuntimeError: if Java stops, answers with something else, or does not answer in time.
            ValueError: if an item has no reference, or the two lists differ in length.
        """
        _check_items(candidates, references)
        if not len(candidates):
            return 0.0, np.zeros(0)
        lines = [_score_line(candidate, of_item) for candidate, of_item in zip(candidates, references, strict=True)]
        new = [line for line in dict.fromkeys(lines) if line not in self._statistics]
        for start in range(0, len(new), self._LINES_AT_ONCE):
            block = new[start : start + self._LINES_AT_ONCE]
            self._statistics.update(zip(block, self._ask(block, len(block)), strict=True))
        statistics = [self._statistics[line] for line in lines]
        answers = self._ask([" ||| ".join(["EVAL", *statistics])], len(lines) + 1)
        try:
            *single, score = [float(answer) for answer in answers]
        except ValueError:
            raise RuntimeError(f"METEOR answered {answers[0]!r} instead of a score") from None
        return score, np.array(single)

    def _ask(self, lines: list[str], num_answers: int) -> list[str]:
        """Write lines, and read as many answers as belong to them."""
        watchdog = threading.Timer(self._timeout_s, self._process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            self._process.stdin.write("".join(f"{line}\n" for line in lines).encode(errors="replace"))
            self._process.stdin.flush()
            answers = [self._process.stdout.readline() for _ in range(num_answers)]
        except (BrokenPipeError, ValueError):  # the process is gone, or was closed
            answers = [b""]
        finally:
            is_late = watchdog.finished.is_set()
            watchdog.cancel()
        if not answers[-1].endswith(b"\n"):
            raise RuntimeError(self._failure(is_late))
        return [answer.decode(errors="replace").strip() for answer in answers]

    def _failure(self, is_late: bool) -> str:
        if self._errors.closed:
            return "METEOR was closed"
        if is_late:
            return f"METEOR did not answer within {self._timeout_s:g} s and was stopped"
        code = self._process.wait()
        self._errors.seek(0)
        return f"METEOR stopped with exit code {code}: {self._errors.read().decode(errors='replace').strip()[-1000:]}"


def _score_line(candidate: str, references: Sequence[str]) -> str:
    candidate = candidate.replace("|||", "").replace("  ", " ")
    return _LINE_BREAKS.sub(" ", " ||| ".join(["SCORE", *references, candidate]))
