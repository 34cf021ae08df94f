# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""`trl-temporal eval --endpoint`: a model elsewhere is asked with frames and their times."""

import base64
import io
import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tests.test_distort import endpoint
from trl_temporal import evaluate_model
from trl_temporal.cli import main
from trl_temporal.evaluation import runner
from trl_temporal.evaluation.endpoint_texts import ask_endpoint
from trl_temporal.synthesis.endpoint import ChatEndpoint
from trl_temporal.video import load_row_video, load_video


@pytest.fixture
def data(event_world, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = event_world["train"].select(range(4)).to_list()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path, rows


def question(row):
    return row["prompt"][-1]["content"][-1]["text"].replace("<evi>", "").split("?")[0]


def asked(body):
    return body["messages"][-1]["content"][-1]["text"]


def times_and_pictures(body):
    content = body["messages"][-1]["content"]
    times = [part["text"] for part in content if part["type"] == "text" and part["text"].startswith("Frame at")]
    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
    return times, [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


def test_frames_and_their_times_are_sent_and_answers_scored(data, tmp_path, capsys):
    path, rows = data
    words = ["eval", "a-model", "--benchmark", "rows", "--data", str(path), "--output", str(tmp_path / "run")]
    with endpoint(lambda number, body: "From 1.0 to 2.5 seconds.") as server:
        words += ["--endpoint", server.url, "--fps", "2", "--max-new-tokens", "40"]
        assert main(words) == 0
        num_requests = len(server.requests)
        assert main(words) == 0  # all shards are there
        assert len(server.requests) == num_requests == len(rows)
    assert {body["model"] for body in server.requests} == {"a-model"}
    assert {(body["temperature"], body["max_tokens"]) for body in server.requests} == {(0.0, 40)}
    times, pictures = times_and_pictures(server.requests[0])
    video = next(row["videos"][0] for row in rows if question(row) in asked(server.requests[0]))
    shown = load_video(video["path"], fps=2)
    assert times == [f"Frame at {time_s:.1f} s:" for time_s in shown.timestamps_s]
    # JPEG loses a little of the colours' sharpness.
    assert np.abs(np.stack(pictures).astype(float) - shown.frames).mean() < 8
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["model"] == {"name": "a-model", "type": "endpoint"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["From 1.0 to 2.5 seconds."] * len(rows)
    assert "grounding_f1" in capsys.readouterr().out


def test_an_answer_that_is_cut_off_is_scored_as_it_is(data, monkeypatch):
    path, _ = data
    cut_off = {"choices": [{"message": {"content": "From 1.0 to"}, "finish_reason": "length"}]}
    seen = []
    score = runner._score
    monkeypatch.setattr(runner, "_score", lambda bench, given, *rest: seen.extend(given) or score(bench, given, *rest))
    with endpoint(lambda number, body: cut_off) as server:
        evaluate_model("a-model", "rows", path, endpoint=server.url, limit=1, progress=False)
    assert "From 1.0 to" in str(seen[0])


def test_a_row_that_the_endpoint_refuses_is_named_or_counted(data):
    path, rows = data

    def behave(number, body):
        refused = question(rows[2]) in asked(body)
        return (400, {"error": "too long"}) if refused else "From 1.0 to 2.5 seconds."

    with endpoint(behave) as server:
        shared = {"endpoint": server.url, "progress": False}
        with pytest.raises(ValueError, match="is refused by the endpoint .*too long.*lower `max_frames`"):
            evaluate_model("a-model", "rows", path, **shared)
        run = evaluate_model("a-model", "rows", path, on_bad_sample="skip", **shared)
    assert any("too long" in problem.detail for problem in run.scores["fixed"].problems)


@pytest.mark.parametrize("on_bad_sample", ["raise", "skip"])
def test_a_model_that_the_endpoint_does_not_have_is_an_error(data, on_bad_sample):
    with endpoint(lambda number, body: (404, {"error": "no such model"})) as server:
        with pytest.raises(ConnectionError, match="status 404.*no such model.*Check the endpoint"):
            evaluate_model("b", "rows", data[0], endpoint=server.url, on_bad_sample=on_bad_sample, progress=False)


def test_each_refused_row_has_its_own_words(data):
    path, rows = data
    refused = [question(row) for row in rows[1:3]]

    def behave(number, body):
        words = [words for words in refused if words in asked(body)]
        return (400, {"error": f"held back: {words[0]}"}) if words else "From 1.0 to 2.5 seconds."

    reader = partial(load_row_video, fps=1)
    with endpoint(behave) as server:
        # Chunks of two rows: the last one is refused as a whole.
        shared = {"read_video": reader, "progress": False}
        answers, found = ask_endpoint(ChatEndpoint(server.url, concurrency=2), "m", [rows[0], *rows[:3]], **shared)
    assert list(found) == [2, 3]
    assert all(words in found[number] for number, words in zip((2, 3), refused, strict=True))
    assert [bool(answer.text) for answer in answers] == [True, True, False, False]


def test_rows_that_are_all_refused_are_counted_and_listed(data):
    path, rows = data
    with endpoint(lambda number, body: (400, {"error": "too many pictures"})) as server:
        shared = {"endpoint": server.url, "progress": False}
        with pytest.raises(ValueError, match="too many pictures"):
            evaluate_model("a-model", "rows", path, **shared)
        run = evaluate_model("a-model", "rows", path, on_bad_sample="skip", **shared)
    problems = run.scores["fixed"].problems
    assert sum("too many pictures" in problem.detail for problem in problems) == len(rows)


def test_features_cannot_be_sent(data):
    with pytest.raises(ValueError, match="takes no features"):
        evaluate_model("a", "rows", data[0], endpoint="http://localhost:1/v1", feature_cache="cache")
