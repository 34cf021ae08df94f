# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import re
import shutil
import subprocess
from urllib.parse import quote, unquote

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_temporal.data.event_world import simulate, video_rows
from trl_temporal.data.grammar import format_dense, format_grounding, format_qa
from trl_temporal.report.data_rows import align_spans, describe_arguments, row_record
from trl_temporal.report.data_view import choose_balanced, view
from trl_temporal.synthesis import FACTORS, make_preference_row
from trl_temporal.synthesis.factors import InfeasibleFactor

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CAPTIONS = ["A man opens the door", "He waves", "The dog runs left"]
TEXT = format_dense(CAPTIONS)
SPANS = [[1.0, 3.0], [4.0, 7.0], [9.0, 12.0]]
HOSTILE = (
    "</script><script>document.title = 'owned'</script>",
    "<!-- <script>",
    "<img src=https://example.com/x.png onerror=alert(1)>",
    "\"'&amp;`{{ 7 * 7 }}${1}",
    "🎬 👩🏽‍🍳 הדלת נפתחת مرحبا \u202e\u2028\u2029",
    "half of a pair: \ud83c",
)


def message(role, text):
    video = [{"type": "video"}] if role == "user" else []
    return [{"role": role, "content": [*video, {"type": "text", "text": text}]}]


def pair(factor="shift", chosen=TEXT, rejected=TEXT, spans=SPANS, rejected_spans=SPANS, **columns):
    return {
        "id": "row-1",
        "source_id": "row",
        "task": "dense",
        "videos": [{"path": "videos/a.mp4"}],
        "duration": 16.0,
        "prompt": message("user", "What happens?"),
        "chosen": message("assistant", chosen),
        "rejected": message("assistant", rejected),
        "chosen_spans": spans,
        "rejected_spans": rejected_spans,
        "factor": factor,
        "factor_args": "{}",
    } | columns


def sft(**columns):
    row = {key: value for key, value in pair(**columns).items() if not re.match("chosen|rejected|factor", key)}
    return {"completion": message("assistant", format_dense(CAPTIONS)), "spans": SPANS} | row | columns


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def page_of(path, rows, **options):
    view(write_jsonl(path / "pairs.jsonl", rows), path / "page.html", open_browser=False, **options)
    return (path / "page.html").read_text(encoding="utf-8")


def records_of(page):
    return json.loads(re.search(r'<script id="records" type="application/json">(.*?)</script>', page, re.S)[1])


def kinds(record):
    return [[bar["kind"] for bar in side["bars"]] for side in record["sides"]]


def marked(record):
    return [[run["text"] for run in side["text"] if run.get("changed")] for side in record["sides"]]


# The differences of a pair


def test_shift_is_marked():
    record = row_record(pair(rejected_spans=[SPANS[0], [6.5, 9.5], SPANS[2]]), "preference")
    assert kinds(record) == [["same", "moved", "same"]] * 2
    assert record["sides"][1]["bars"][1]["title"] == "event 2, 6.5–9.5 s: moved by +2.5 s"
    assert record["sides"][1]["bars"][1]["mark"] == "→"
    assert record["sides"][1]["ghosts"] == [[25.0, 18.75]]
    assert record["sides"][0]["ghosts"] == []
    assert marked(record) == [[], []]
    assert record["sides"][1]["text"][2] == {"interval": "6.5–9.5 s", "kind": "moved", "label": "2"}


def test_add_is_marked():
    captions = [CAPTIONS[0], "He sleeps", *CAPTIONS[1:]]
    spans = [SPANS[0], [3.0, 4.0], *SPANS[1:]]
    record = row_record(pair("add", rejected=format_dense(captions), rejected_spans=spans), "preference")
    assert kinds(record) == [["same"] * 3, ["same", "added", "same", "same"]]
    # The events behind it keep their numbers and their words.
    assert [bar["label"] for bar in record["sides"][1]["bars"]] == ["1", "", "2", "3"]
    assert [text.strip() for text in marked(record)[1]] == ["He sleeps."]
    assert marked(record)[0] == []


def test_delete_is_marked():
    rejected = format_dense(CAPTIONS[::2])
    record = row_record(pair("delete", rejected=rejected, rejected_spans=SPANS[::2]), "preference")
    assert kinds(record) == [["same", "removed", "same"], ["same", "same"]]
    assert [bar["label"] for bar in record["sides"][1]["bars"]] == ["1", "3"]
    assert record["sides"][1]["ghosts"] == [[25.0, 18.75]]
    assert marked(record) == [["He waves."], []]


def test_merge_is_marked():
    rejected = format_dense([CAPTIONS[0], CAPTIONS[2]])
    spans = [SPANS[0], [SPANS[1][0], SPANS[2][1]]]
    record = row_record(pair("merge", rejected=rejected, rejected_spans=spans), "preference")
    assert kinds(record) == [["same", "merged", "merged"], ["same", "merged"]]
    assert record["sides"][1]["bars"][1]["label"] == "2∪3"
    assert len(record["sides"][1]["ghosts"]) == 2
    assert marked(record) == [["He waves."], []]  # the caption that was not kept


def test_distort_and_repeat_are_marked():
    rejected = format_dense([CAPTIONS[0], CAPTIONS[1], "The dog runs right"])
    record = row_record(pair("distort", rejected=rejected), "preference")
    assert kinds(record) == [["same", "same", "reworded"]] * 2
    assert marked(record) == [["left."], ["right."]]

    record = row_record(pair("repeat", rejected=format_dense([CAPTIONS[0], CAPTIONS[0], CAPTIONS[2]])), "preference")
    assert kinds(record) == [["same", "reworded", "same"]] * 2
    assert marked(record) == [["He waves."], ["A man opens the door."]]  # a changed phrase is one mark


def test_answers_are_compared_word_by_word():
    chosen, rejected = format_qa("The red disc", 1), format_qa("The blue disc", 1)
    record = row_record(
        pair("distort", chosen, rejected, SPANS[:1], SPANS[:1], task="qa", factor_args='{"distorted": []}'),
        "preference",
    )
    assert kinds(record) == [["same"], ["same"]]
    assert marked(record) == [["red"], ["blue"]]


def test_two_different_responses():
    """Of an on-policy pair: other numbers of spans, and what overlaps belongs together."""
    chosen, rejected, missing = align_spans([[0, 4], [10, 14]], [[1, 4.5], [20, 22], [10.0, 14.001]])
    assert [span.kind for span in chosen] == ["moved", "same"]
    assert [span.kind for span in rejected] == ["moved", "added", "same"]
    assert rejected[0].detail == "start +1.0 s, end +0.5 s"
    assert missing == [0]


spans_ = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted), max_size=8)


@given(chosen=spans_, rejected=spans_)
def test_every_span_is_accounted_for(chosen, rejected):
    *sides, missing = align_spans(chosen, rejected)
    assert [len(side) for side in sides] == [len(chosen), len(rejected)]
    assert {span.kind for span in sides[0]} <= {"same", "moved", "merged", "removed"}
    assert {span.kind for span in sides[1]} <= {"same", "moved", "merged", "added"}
    numbers = [number for span in sides[1] for number in span.label.split("∪") if number]
    assert sorted(numbers) == sorted(span.label for span in sides[0] if span.kind != "removed")  # each exactly once
    assert missing == [i for i, span in enumerate(sides[0]) if span.kind != "same"]


@given(spans=spans_)
def test_equal_responses_do_not_differ(spans):
    *sides, missing = align_spans(spans, spans)
    assert missing == [] and {span.kind for side in sides for span in side} <= {"same"}


@pytest.mark.parametrize("factor", FACTORS)
def test_every_factor_of_the_synthesis_shows(factor):
    """Whatever the synthesis makes can be drawn, differs where it should, and its arguments are put into words."""
    shown = 0
    for number in range(6):
        for row in video_rows(simulate(0, number), {"path": "a.mp4"}):
            try:
                made = make_preference_row(row, seed=0, factors=[factor])
            except InfeasibleFactor:
                continue
            record = row_record(made, "preference")
            shown += 1
            assert record["fault"] == ""
            changed = {kind for side in kinds(record) for kind in side} - {"same"}
            expected = {"shift": "moved", "add": "added", "delete": "removed", "merge": "merged"}
            if factor in expected:
                assert changed == {expected[factor]}
            else:
                assert changed == ({"reworded"} if row["task"] == "dense" else set())
                assert all(marked(record))
            assert "{" not in record["arguments"] and len(record["arguments"]) > 10
    assert shown


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"shifted": [{"event": 0, "delta_s": -2.5}]}, "event 1 moved by −2.5 s"),
        ({"deleted": [1]}, "event 2 left out"),
        ({"deleted": [0, 1, 3]}, "events 1, 2 and 4 left out"),
        ({"merged": [0, 1], "kept_caption": 1}, "events 1 and 2 became one, with the words of event 2"),
        ({"event": 1, "span": [2.0, 3.5]}, "an event added at 2.0–3.5 s"),
        ({"event": 2}, "event 3 has the words of event 2"),
        ({"distorted": [{"from": "a red hat", "to": "a blue hat"}]}, "“red” → “blue”"),
        ({"distorted": [{"event": 0, "from": "he is in", "to": "he is not in"}]}, "event 1: + “not”"),
        ({"f1": 0.123456, "model": "org/model"}, "f1 0.123 · model org/model"),
        ({"shifted": 3}, "shifted 3"),
        ([1], "[1]"),
        (None, "null"),
    ],
)
def test_arguments_in_words(args, words):
    assert describe_arguments(json.dumps(args)) == words


def test_arguments_that_are_no_json():
    assert describe_arguments("{half") == "{half"
    assert describe_arguments(None) == ""


# One row


def test_spans_at_the_edges():
    spans = [[0.0, 0.0], [0.0, 16.0], [16.0, 16.0]]
    record = row_record(pair(spans=spans, rejected_spans=spans), "preference")
    bars = record["sides"][0]["bars"]
    assert [bar["place"] for bar in bars] == [[0.0, 0.0], [0.0, 100.0], [100.0, 0.0]]
    assert record["end"] is None and record["ticks"][-1] == [100.0, "16"]


def test_spans_that_overlap_get_lanes():
    spans = [[0.0, 5.0], [2.0, 8.0], [5.0, 9.0]]
    side = row_record(pair(spans=spans, rejected_spans=spans), "preference")["sides"][0]
    assert [bar["lane"] for bar in side["bars"]] == [0, 1, 0] and side["lanes"] == 2


def test_a_span_beyond_the_end_shows_its_fault():
    record = row_record(pair(rejected_spans=[*SPANS[:2], [15.0, 20.0]]), "preference")
    assert "rejected_spans" in record["fault"] and record["end"] == 80.0
    assert record["sides"][1]["bars"][2]["place"] == [75.0, 25.0]


def test_without_duration_the_axis_ends_with_the_last_span():
    record = row_record(pair(duration=None), "preference")
    assert record["duration"] == "no duration" and record["end"] is None
    assert record["sides"][0]["bars"][2]["place"] == [75.0, 25.0]


def test_no_spans_at_all():
    record = row_record(pair("distort", format_qa("Yes", 0), format_qa("No", 0), [], [], duration=None), "preference")
    assert kinds(record) == [[], []] and record["ticks"][-1][1] == "1"


def test_supervised_row():
    record = row_record(sft(prompt=message("user", "What is in <evi>?"), prompt_spans=[[1.0, 2.0]]), "sft")
    assert [side["name"] for side in record["sides"]] == ["response"] and kinds(record) == [["same"] * 3]
    assert record["question"][1] == {"interval": "1.0–2.0 s", "kind": "same", "label": "1"}
    assert len(record["asked"]["bars"]) == 1


def test_stages_that_do_not_match_are_named():
    row = pair(chosen=format_grounding(2), spans=SPANS[:1], rejected_spans=SPANS[:1])
    note = row_record(row, "preference")["sides"][0]["note"]
    assert note == "the evidence stage has 2 <evi> for 1 span and the text has 2 <evi> for 1 span"


@pytest.mark.parametrize(
    "broken",
    [
        {"chosen": 3},
        {"rejected": None},
        {"prompt": []},
        {"chosen_spans": [[1.0, float("nan")], "x", [3, 2], [0, 1e308], [1, 2, 3]]},
        {"chosen_spans": 7},
        {"duration": float("inf")},
        {"duration": "long"},
        {"duration": 5e-324},
        {"videos": [{"path": "a.mp4", "start_s": "x"}]},
        {"videos": 7},
        {"factor_args": 3},
        {"id": [1], "task": {"a": 1}, "factor": 7},
    ],
)
def test_a_broken_row_is_shown(tmp_path, broken):
    page = page_of(tmp_path, [pair() | broken, pair(id="good", rejected=format_dense(CAPTIONS[::-1]))])
    record, good = records_of(page)
    assert "NaN" not in json.dumps(record) and "Infinity" not in json.dumps(record)
    assert "raw" in record or record["sides"]
    assert good["fault"] == "" and good["sides"]


# The page


def test_hostile_text_stays_text(tmp_path):
    rows = []
    for text in HOSTILE:
        response = format_dense([text])
        row = pair(text, response, response, SPANS[:1], SPANS[:1], id=text, task=text, factor_args=json.dumps(text))
        rows.append(row | {"prompt": message("user", text), "videos": [{"path": text}]})
    rows.append(pair(task="dense"))  # the broken ones must not hide the others
    page = page_of(tmp_path, rows)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page and "<!--" not in page
    records = records_of(page)
    assert [record["question"][0]["text"] for record in records[:-1]] == list(HOSTILE)
    assert records[0]["sides"][0]["text"][1]["text"].strip() == HOSTILE[0] + "."


def test_page_asks_for_nothing(tmp_path):
    page = page_of(tmp_path, [pair(), sft(id="other")])
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", page)
    assert "default-src 'none'" in page


def test_same_rows_same_page(tmp_path):
    rows = [pair(factor, id=f"{factor}-{number}") for number in range(9) for factor in FACTORS]
    assert page_of(tmp_path, rows, max_rows=20) == page_of(tmp_path, rows, max_rows=20)
    assert page_of(tmp_path, rows, max_rows=20) != page_of(tmp_path, rows, max_rows=20, seed=1)


def test_counts_are_of_all_rows(tmp_path):
    rows = [pair("shift", id=str(number)) for number in range(90)]
    rows += [pair("add", id=f"add {number}", task="grounding") for number in range(10)]
    page = page_of(tmp_path, rows, max_rows=20)
    factors = [record["factor"] for record in records_of(page)]
    assert factors == ["shift"] * 10 + ["add"] * 10
    assert "100 preference pairs; 20 of them are in this page" in page
    assert re.search(r"shift<small>.*?</small></td><td>90</td><td>90.0 %", page)
    assert re.search(r">add<small>.*?</small></td><td>10</td><td>10.0 %", page)


@given(
    groups=st.lists(st.sampled_from("abc"), max_size=60),
    max_rows=st.integers(1, 30),
    seed=st.integers(0, 5),
    data=st.data(),
)
def test_choice_is_balanced_and_independent_of_the_order(groups, max_rows, seed, data):
    ids = [f"row-{index}" for index in range(len(groups))]
    chosen = choose_balanced(ids, groups, max_rows, seed)
    assert len(chosen) == min(max_rows, len(ids)) and chosen == sorted(set(chosen))
    counts = {group: [groups[index] for index in chosen].count(group) for group in set(groups)}
    for group, count in counts.items():
        # A group has fewer than another only if nothing more is left of it, or by one.
        assert count >= max(counts.values()) - 1 or count == groups.count(group)
    order = data.draw(st.permutations(range(len(ids))))
    again = choose_balanced([ids[i] for i in order], [groups[i] for i in order], max_rows, seed)
    assert sorted(order[i] for i in again) == chosen


def test_reads_what_datasets_writes(tmp_path):
    rows = [make_preference_row(row, seed=0) for row in video_rows(simulate(0, 0), {"path": "a.mp4"})]
    dataset = datasets.Dataset.from_list(rows)
    datasets.DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(tmp_path / "pairs")
    dataset.to_parquet(tmp_path / "pairs.parquet")
    pages = [
        view(tmp_path / name, tmp_path / "out" / f"{name}.html", open_browser=False).read_text(encoding="utf-8")
        for name in ("pairs", "pairs.parquet")
    ]
    both, one = map(records_of, pages)
    assert [record["split"] for record in both] == ["train"] * len(rows) + ["test"]
    assert {record["fault"] for record in both} == {""}
    # A row that two splits have can still be linked to.
    assert both[-1]["anchor"] == f"{rows[0]['id']}~2"
    assert [record["sides"] for record in one] == [record["sides"] for record in both[:-1]]
    assert "Rows by split" in pages[0] and "Rows by split" not in pages[1]


def test_no_rows(tmp_path):
    page = page_of(tmp_path, [])
    assert records_of(page) == [] and "There are no rows" in page


def test_where_the_page_goes(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    path = view(write_jsonl(tmp_path / "pairs.jsonl", [pair()]))
    assert path.name == "pairs.jsonl.view.html" and path.exists()
    assert opened == [(tmp_path / path).as_uri()]


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="max_rows is 0"):
        view(tmp_path, max_rows=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        view(tmp_path / "nowhere", open_browser=False)
    with pytest.raises(ValueError, match=r"line 2, record: is \[1\], not an object"):
        view(write_jsonl(tmp_path / "rows.jsonl", [pair(), [1]]), open_browser=False)


# The script of the page


def in_browser(tmp_path, page, script, anchor=""):
    """What `script` returns when it runs at the end of the page, where nothing may have failed before."""
    errors = "<script>var errors = []; addEventListener('error', (event) => errors.push(event.message))</script>"
    # The answer goes through the title, and the rest of the page away: chromium cannot print half a surrogate pair.
    probe = (
        f"<script>document.title = encodeURIComponent(JSON.stringify([errors, (() => {{ {script} }})()]));"
        "document.body.remove()</script>"
    )
    path = tmp_path / "probe.html"
    path.write_text(page.replace("<body>", f"<body>{errors}").replace("</body>", f"{probe}</body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri() + anchor]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    errors, seen = json.loads(unquote(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert errors == []
    return seen


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome")


@needs_browser
def test_filters_search_and_pages_in_the_browser(tmp_path):
    rows = [pair(factor, id=f"{factor}-{number}") for number in range(6) for factor in FACTORS]
    rows[7]["prompt"] = message("user", "Where is the zebra?")
    script = """
      const shown = () => [...document.querySelectorAll("article.row .id")].map((link) => link.textContent);
      const chips = [...document.querySelectorAll(".chips button")];
      const chip = (name) => chips.find((button) => button.textContent.startsWith(name));
      const key = (name) => dispatchEvent(new KeyboardEvent("keydown", { key: name }));
      const seen = { first: shown().length, where: document.querySelector(".where").textContent };
      Object.defineProperty(KeyboardEvent.prototype, "target", { get: () => document.body });
      key("ArrowRight"); seen.second = shown()[0];
      key("ArrowLeft"); seen.back = shown()[0];
      chip("merge").click(); seen.merge = shown(); seen.pressed = chip("merge").getAttribute("aria-pressed");
      chip("all").click();
      const search = document.getElementById("search");
      search.value = "ZEBRA the"; search.dispatchEvent(new Event("input")); seen.search = shown();
      seen.counts = chip("add").textContent + chip("shift").textContent;
      search.value = "no such word"; search.dispatchEvent(new Event("input"));
      seen.nothing = document.querySelector(".nothing").textContent;
      return seen;
    """
    seen = in_browser(tmp_path, page_of(tmp_path, rows), script)
    assert seen == {
        "first": 10,
        "where": "1–10 of 36",
        "second": "repeat-1" if FACTORS[4] == "repeat" else f"{FACTORS[10 % 6]}-1",
        "back": f"{FACTORS[0]}-0",
        "merge": [f"merge-{number}" for number in range(6)],
        "pressed": "true",
        "search": [f"{FACTORS[1]}-1"],
        "counts": "add1shift0",
        "nothing": "No row fits these filters.",
    }


@needs_browser
def test_links_and_hostile_text_in_the_browser(tmp_path):
    rows = [pair(id=f"row {number}") for number in range(25)]
    for number, text in enumerate(HOSTILE, start=12):
        response = format_dense([text])
        rows[number] |= pair(text, response, response, SPANS[:1], SPANS[:1], id=f"{text} 100%")
        rows[number]["prompt"] = message("user", text)
    page = page_of(tmp_path, rows)
    anchor = records_of(page)[12]["anchor"]
    script = """
      const aimed = document.querySelector("article.is-aimed");
      const link = aimed.querySelector(".id");
      return {
        id: link.textContent,
        href: decodeURIComponent(link.hash) === decodeURIComponent(location.hash),
        question: aimed.querySelector("header b").textContent,
        page: document.querySelector(".where").textContent,
        scripts: document.querySelectorAll("article script, article img").length,
      };
    """
    seen = in_browser(tmp_path, page, script, "#" + quote(anchor, safe=""))
    expected = {"id": rows[12]["id"], "href": True, "question": HOSTILE[0], "page": "11–20 of 25", "scripts": 0}
    assert seen == expected
