# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
The checks of [`trl_temporal.data.row_checks`] on whole Arrow columns, which is what makes them fast.

They decide which rows look wrong, and [`~trl_temporal.data.row_checks.check_row`] then says what is wrong with each of
those. So a check here may suspect a good row, but must never pass a bad one. Columns of unusual types are suspected
whole, and cost the time of reading their rows one by one.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .grammar import EVI, EVI_END
from .media import IMAGE_SUFFIXES, SOURCES, VIDEO_SUFFIXES, VideoEntry
from .row_checks import DURATION_SLACK_S, RESPONSES, ROLES

# The form of a response with evidence. `\s` of Arrow's regular expressions is narrower than Python's white space.
_RESPONSE_FORM = rf"^\s*({EVI}\s*)*{EVI_END}"
# All that Python's `strip` takes away, and more.
_BLANKS = r"[\pZ\pC]+"
_MAX_EXACT = 2.0**53  # larger integers are not exact as floats


class _UnusualTypeError(Exception):
    """A column whose type the checks below do not know."""


class _Lists(NamedTuple):
    """A column of lists: which cells are lists, their lengths (0 elsewhere), all elements and the row of each."""

    given: np.ndarray
    lengths: np.ndarray
    values: pa.Array
    rows: np.ndarray

    def count(self, elements: np.ndarray) -> np.ndarray:
        """How many of the elements that `elements` (bool) marks each row has."""
        return np.bincount(self.rows[elements], minlength=len(self.lengths))


class _Messages(NamedTuple):
    """A column of messages: suspicious rows, the number of messages, the text of them all, and their other parts."""

    suspicious: np.ndarray
    num_messages: np.ndarray
    last_role: pa.Array
    text: pa.Array
    num_videos: np.ndarray
    num_user_videos: np.ndarray
    num_images: np.ndarray
    num_user_images: np.ndarray


class _Spans(NamedTuple):
    """A column of spans: suspicious rows, which cells are given, the number of spans, and `(num_spans, 2)` edges."""

    suspicious: np.ndarray
    given: np.ndarray
    lengths: np.ndarray
    edges_s: np.ndarray
    rows: np.ndarray


def suspicious_rows(table: pa.Table, kind: str) -> np.ndarray:
    """
    Find the rows of a table that look as if they broke the data contract.

    Args:
        table (`pyarrow.Table`):
            Rows.
        kind (`str`):
            A key of `RESPONSES`.

    Returns:
        `np.ndarray` of shape `(num_rows,)`, bool: `False` for rows that are surely good.

    Example:
        >>> import pyarrow as pa
        >>> from trl_temporal.data.column_checks import suspicious_rows
        >>> prompts = [[{"role": "user", "content": "Hello?"}], [{"role": "human", "content": "Hello?"}]]
        >>> suspicious_rows(pa.table({"prompt": prompts}), "prompt").tolist()
        [False, True]
    """
    try:
        return _suspicious_rows(table, kind)
    except (_UnusualTypeError, pa.ArrowException):
        return np.ones(len(table), dtype=bool)


def _suspicious_rows(table: pa.Table, kind: str) -> np.ndarray:
    responses = RESPONSES[kind]
    num_videos, duration_s, bad = _check_videos(table)
    num_images, bad_images = _check_images(table)
    bad |= bad_images

    prompt = _read_messages(_column(table, "prompt"))
    spans = {}
    for column in ("prompt_spans", "response_spans", "all_spans", *responses.values()):
        spans[column] = _check_spans(_column(table, column), duration_s, moment=column == "prompt_spans")
        bad |= spans[column].suspicious
    bad |= prompt.suspicious | ~_equal(prompt.last_role, "user") | (_count(prompt.text, EVI_END) > 0)
    bad |= _count(prompt.text, EVI) != spans["prompt_spans"].lengths
    bad |= (prompt.num_videos != prompt.num_user_videos) | (prompt.num_videos > 1) | (num_videos > 1)
    bad |= prompt.num_videos != num_videos
    bad |= (prompt.num_images != prompt.num_user_images) | (prompt.num_images != num_images)

    texts = {}
    for column, span_column in responses.items():
        response = _read_messages(_column(table, column))
        texts[column] = response.text
        bad |= response.suspicious | (response.num_messages != 1) | ~_equal(response.last_role, "assistant")
        bad |= (response.num_videos > 0) | (response.num_images > 0)
        in_response = spans[span_column]
        if column == "completion":
            own = spans["response_spans"]
            in_response = in_response._replace(lengths=np.where(own.given, own.lengths, in_response.lengths))
        bad |= _check_grammar(response.text, num_videos > 0, spans[span_column], in_response.lengths)
    if kind == "preference":
        bad |= _equal_responses(texts["chosen"], texts["rejected"], spans["chosen_spans"], spans["rejected_spans"])
    if kind == "evaluation":
        bad |= _check_evaluation(table)
    return bad


# Arrow


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table))
    return table.column(name).combine_chunks()


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _is_text(type: pa.DataType) -> bool:
    return pa.types.is_string(type) or pa.types.is_large_string(type)


def _is_number(type: pa.DataType) -> bool:
    return pa.types.is_integer(type) or pa.types.is_floating(type)


def _is_list(type: pa.DataType) -> bool:
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def _given(array: pa.Array) -> np.ndarray:
    return _numpy(array.is_valid())


def _lists(array: pa.Array) -> _Lists:
    if pa.types.is_null(array.type):
        zeros = np.zeros(len(array), dtype=np.int64)
        return _Lists(zeros.astype(bool), zeros, pa.nulls(0), zeros[:0])
    if not _is_list(array.type):
        raise _UnusualTypeError
    lengths = _numpy(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
    return _Lists(_given(array), lengths, pc.list_flatten(array), np.repeat(np.arange(len(array)), lengths))


def _one_each(array: pa.Array) -> _Lists:
    """A column of single values as one of lists."""
    given = _given(array)
    return _Lists(given, given.astype(np.int64), array.drop_null(), given.nonzero()[0])


def _field(array: pa.Array, name: str) -> pa.Array:
    """A field of structs; null where there is none."""
    if pa.types.is_null(array.type):
        return pa.nulls(len(array))
    if not pa.types.is_struct(array.type):
        raise _UnusualTypeError
    if array.type.get_field_index(name) < 0:
        return pa.nulls(len(array))
    return pc.struct_field(array, name)


def _numbers(array: pa.Array) -> np.ndarray:
    """As float64, NaN where there is none."""
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if not _is_number(array.type):
        raise _UnusualTypeError
    return _numpy(array.cast(pa.float64(), safe=False)).astype(np.float64)


def _texts(array: pa.Array) -> pa.Array:
    """As strings, null where there is none."""
    if not (pa.types.is_null(array.type) or _is_text(array.type)):
        raise _UnusualTypeError
    return array.cast(pa.string())


def _equal(texts: pa.Array, text: str) -> np.ndarray:
    return _numpy(pc.fill_null(pc.equal(texts, text), False))


def _count(texts: pa.Array, text: str) -> np.ndarray:
    return _numpy(pc.fill_null(pc.count_substring(texts, text), 0))


# Columns


def _check_videos(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The number of videos, the duration that is known (NaN where none is), and the suspicious rows."""
    column = _column(table, "videos")
    if _is_text(column.type) or pa.types.is_struct(column.type):  # one entry, without a list
        videos = _one_each(column)
    else:
        videos = _lists(column)
    entries = videos.values
    duration_s = _numbers(_column(table, "duration"))
    bad = _given(_column(table, "duration")) & ~((duration_s > 0) & (duration_s < _MAX_EXACT))
    if pa.types.is_null(entries.type) or _is_text(entries.type):
        wrong = ~_given(entries) | _has_suffix(entries, IMAGE_SUFFIXES)
        return videos.lengths, duration_s, bad | (videos.count(wrong) > 0)

    names = {field.name for field in entries.type} if pa.types.is_struct(entries.type) else set()
    wrong = ~_given(entries)
    for name in names - VideoEntry.__annotations__.keys():  # with a value it is an unknown key
        wrong |= _given(_field(entries, name))
    path, frames = _texts(_field(entries, "path")), _lists(_field(entries, "frames"))
    given = {"path": _given(path), "frames_dir": _given(_texts(_field(entries, "frames_dir"))), "frames": frames.given}
    start, end, fps = (_field(entries, name) for name in ("start_s", "end_s", "fps"))
    start_s, end_s = _numbers(start), _numbers(end)
    wrong |= (sum(given[name].astype(int) for name in SOURCES) != 1) | (given["path"] == _given(fps))
    wrong |= _has_suffix(path, IMAGE_SUFFIXES)
    wrong |= frames.given & ((frames.lengths == 0) | (frames.count(_wrong_images(frames.values)) > 0))
    wrong |= _given(fps) & ~((_numbers(fps) > 0) & (_numbers(fps) < _MAX_EXACT))
    first_s = np.where(_given(start), start_s, 0.0)
    last_s = np.where(_given(end), end_s, np.inf)
    wrong |= ~((first_s >= 0) & (first_s < last_s) & (first_s < _MAX_EXACT))

    crop_s = np.full(len(duration_s), np.nan)
    with np.errstate(invalid="ignore"):
        crop_s[videos.rows] = last_s - first_s  # rows with more than one entry are bad anyway
    return videos.lengths, np.fmin(duration_s, crop_s), bad | (videos.count(wrong) > 0)


def _check_images(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The number of images, and the suspicious rows."""
    if "images" not in table.column_names or len(table) == 0:
        return np.zeros(len(table), dtype=np.int64), np.zeros(len(table), dtype=bool)
    num_images, bad = [], []
    for column in table.column("images").chunks:  # combined, they would be copied, and they may hold the files
        is_single = _is_text(column.type) or pa.types.is_struct(column.type)  # one image, without a list
        images = _one_each(column) if is_single else _lists(column)
        num_images.append(images.lengths)
        bad.append(images.count(_wrong_images(images.values)) > 0)
    return np.concatenate(num_images), np.concatenate(bad)


def _wrong_images(images: pa.Array) -> np.ndarray:
    """Which of the images are no paths, and no structs with `path` or `bytes` alone, or are videos by their names."""
    if pa.types.is_null(images.type) or _is_text(images.type):
        return ~_given(images) | _has_suffix(images, VIDEO_SUFFIXES)
    if not pa.types.is_struct(images.type):
        raise _UnusualTypeError
    path = _texts(_field(images, "path"))
    wrong = ~_given(images) | ~(_given(path) | _given(_field(images, "bytes"))) | _has_suffix(path, VIDEO_SUFFIXES)
    for name in {field.name for field in images.type} - {"path", "bytes"}:
        wrong |= _given(_field(images, name))
    return wrong


def _has_suffix(paths: pa.Array, suffixes: tuple[str, ...]) -> np.ndarray:
    pattern = rf"\.({'|'.join(suffixes)})$"
    return _numpy(pc.fill_null(pc.match_substring_regex(_texts(paths), pattern, ignore_case=True), False))


def _read_messages(column: pa.Array) -> _Messages:
    messages = _lists(column)
    roles, contents = _texts(_field(messages.values, "role")), _field(messages.values, "content")
    if _is_text(contents.type) or pa.types.is_null(contents.type):  # `content` is the text itself
        parts = _one_each(contents)
        texts = _texts(parts.values)
        is_video = is_image = wrong_part = np.zeros(len(texts), dtype=bool)
    else:
        parts = _lists(contents)
        types, texts = (_texts(_field(parts.values, name)) for name in ("type", "text"))
        is_video, is_image = _equal(types, "video"), _equal(types, "image")
        wrong_part = ~is_video & ~is_image & ~(_equal(types, "text") & _given(texts))
    known_role = _numpy(pc.is_in(roles, value_set=pa.array(ROLES)))
    wrong = ~_given(messages.values) | ~known_role | ~parts.given | (parts.count(wrong_part) > 0)
    by_user = _equal(roles, "user")

    def in_rows(count: np.ndarray) -> np.ndarray:
        return np.bincount(messages.rows, count, minlength=len(column))

    # The texts of all parts and messages of a row, joined. There is mostly one.
    is_text = ~is_video & ~is_image & _given(texts)
    rows = messages.rows[parts.rows[is_text]]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(column)))])
    row_texts = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), texts.filter(pa.array(is_text)))
    last = np.cumsum(messages.lengths)[messages.lengths > 0] - 1
    last_role = pa.nulls(len(column), pa.string())
    last_role = pc.replace_with_mask(last_role, pa.array(messages.lengths > 0), roles.take(pa.array(last)))
    return _Messages(
        suspicious=(messages.lengths == 0) | (messages.count(wrong) > 0),
        num_messages=messages.lengths,
        last_role=last_role,
        text=pc.binary_join(row_texts, ""),
        num_videos=in_rows(parts.count(is_video)),
        num_user_videos=in_rows(parts.count(is_video) * by_user),
        num_images=in_rows(parts.count(is_image)),
        num_user_images=in_rows(parts.count(is_image) * by_user),
    )


def _check_spans(column: pa.Array, duration_s: np.ndarray, moment: bool) -> _Spans:
    spans = _lists(column)
    pairs = _lists(spans.values)
    edges_s = np.full((len(spans.values), 2), np.nan)
    is_pair = pairs.lengths == 2
    edges_s[is_pair] = _numbers(pairs.values)[is_pair[pairs.rows]].reshape(-1, 2)
    start_s, end_s = edges_s.T
    # Written so that NaN, which also stands for what is no pair of numbers, fails.
    good = (start_s >= 0) & ((start_s <= end_s) if moment else (start_s < end_s)) & (end_s < _MAX_EXACT)
    good &= ~(end_s > duration_s[spans.rows] + DURATION_SLACK_S)
    return _Spans(spans.count(~good) > 0, spans.given, spans.lengths, edges_s, spans.rows)


def _check_grammar(text: pa.Array, has_video: np.ndarray, spans: _Spans, num_response_spans: np.ndarray) -> np.ndarray:
    num_markers, num_ends = _count(text, EVI), _count(text, EVI_END)
    # Behind the first `</evi>`; where there is none, the whole text counts as before it.
    before = pc.list_element(pc.split_pattern(text, EVI_END, max_splits=1), 0)
    num_evidence = _count(before, EVI)
    grounded = (num_ends == 1) & _numpy(pc.fill_null(pc.match_substring_regex(text, _RESPONSE_FORM), False))
    grounded &= (num_evidence == spans.lengths) & (num_markers - num_evidence == num_response_spans)
    plain = (num_markers == 0) & (num_ends == 0) & (spans.lengths == 0) & (num_response_spans == 0)
    good = np.where(has_video, spans.given & (grounded | plain), (num_markers == 0) & (spans.lengths == 0))
    return ~good | _equal(pc.replace_substring_regex(text, _BLANKS, "", max_replacements=1), "")


def _equal_responses(chosen: pa.Array, rejected: pa.Array, chosen_spans: _Spans, rejected_spans: _Spans) -> np.ndarray:
    suspicious = chosen_spans.lengths == rejected_spans.lengths
    rows = suspicious.nonzero()[0]
    texts = (pc.replace_substring_regex(texts.take(pa.array(rows)), _BLANKS, "") for texts in (chosen, rejected))
    suspicious[rows] = _numpy(pc.fill_null(pc.equal(*texts), False))
    of_chosen, of_rejected = suspicious[chosen_spans.rows], suspicious[rejected_spans.rows]
    differ = (chosen_spans.edges_s[of_chosen] != rejected_spans.edges_s[of_rejected]).any(axis=1)
    suspicious[chosen_spans.rows[of_chosen][differ]] = False
    return suspicious


def _check_evaluation(table: pa.Table) -> np.ndarray:
    options, saliency = _lists(_column(table, "options")), _lists(_column(table, "saliency"))
    option_texts = _texts(options.values)
    blank = _equal(pc.replace_substring_regex(option_texts, _BLANKS, "", max_replacements=1), "")
    bad = options.count(blank | ~_given(option_texts)) > 0
    index = _column(table, "answer_index")
    if not (pa.types.is_integer(index.type) or pa.types.is_null(index.type)):
        raise _UnusualTypeError
    bad |= _given(index) & ~((_numbers(index) >= 0) & (_numbers(index) < options.lengths))
    return bad | (saliency.count(~np.isfinite(_numbers(saliency.values))) > 0)
