# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
import json
import pickle
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_temporal.data.grammar import normalize
from trl_temporal.models.tiny import CHAT_TEMPLATE, train_tokenizer
from trl_temporal.synthesis.distort import (
    PROMPT,
    AnswerCache,
    OpenAIDistort,
    RuleDistort,
    TransformersDistort,
    distortion_fault,
)


def rngs(count, seed=0):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def by_rules(text, captions=(), seed=0):
    return RuleDistort()([text], [{"captions": list(captions)}], [np.random.default_rng(seed)])[0]


def all_by_rules(text, captions=(), draws=60):
    return {by_rules(text, captions, seed) for seed in range(draws)}


# Rules

VOCABULARY = (
    "the a an man woman two 12 three red Orange apple opens closes is not isn't left hand up walks into bowl with and "
    "kitchen é 漢字 😀 <evi> RED 1 1/2 3.5"
).split()
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join)


@given(
    text=sentences | st.text(max_size=30),
    captions=st.lists(sentences | st.text(max_size=20), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_rules_change_a_word_or_say_that_they_cannot(text, captions, seed):
    false_text = by_rules(text, captions, seed)
    assert false_text == by_rules(text, captions, seed)
    if false_text is None:
        return
    assert normalize(false_text) not in {normalize(other) for other in (text, *captions)}
    # At most one place changes, by at most three words ("behind": "in front of"), and an article before it.
    words, false_words = text.split(), false_text.split()
    assert abs(len(words) - len(false_words)) <= 2
    same_before = next((i for i, (a, b) in enumerate(zip(words, false_words, strict=False)) if a != b), len(words))
    backwards = zip(words[same_before:][::-1], false_words[same_before:][::-1], strict=False)
    same_after = next((i for i, (a, b) in enumerate(backwards) if a != b), len(words) - same_before)
    assert len(words) - same_before - same_after <= 4
    # What is no letter, digit or space stays: emoji, punctuation, markers.
    assert re.sub(r"[\w\s'’]", "", false_text) == re.sub(r"[\w\s'’]", "", text)


@given(
    text=st.text(st.characters(categories=["So", "Lo"], exclude_characters="ªº"), max_size=10), seed=st.integers(0, 99)
)
def test_rules_leave_emoji_and_other_scripts_alone(text, seed):
    false_text = by_rules(f"{text} The red disc {text}.", seed=seed)
    assert false_text.startswith(f"{text} The ") and false_text.endswith(f" disc {text}.")
    assert by_rules(text, seed=seed) is None


@pytest.mark.parametrize(
    ("text", "false_texts"),
    [
        ("Two dogs", {"Three dogs", "Four dogs", "Two cats", "Two horses", "Two rabbits", "Two goats"}),
        ("cook it at 350 degrees", {f"{verb} it at 350 degrees" for verb in ("eat", "smell")}
         | {f"cook it at {number} degrees" for number in (250, 450, 550)}),
        ("add 1/2 to 2.5 at 10:30 in 3D", {"remove 1/2 to 2.5 at 10:30 in 3D"}),
        ("An orange", {None}),
        ("A yellow sign", {f"A {colour} sign" for colour in "red blue green black white brown pink purple".split()}),
        ("AN ORANGE SIGN", None),
        ("it is here", {"it is not here"}),
        ("It is not here", {"It is here"}),
        ("it isn't here", {"it is here"}),
        ("Yes.", {"No."}),
        ("left", {"right"}),
        ("the left one", {"the right one"}),
        ("he left the room", {"she left the room"}),
        ("goes up", {"goes down"}),
        ("messes up", {None}),
        ("stops behind it", {"stops in front of it"}),
        ("In front of it", {"Behind it"}),
        ("gets out of it", {"gets into it"}),
        ("turn the old fan on", {"turn the old fan off", "turn the young fan on"}),
        ("", {None}),
        ("Ein Mann geht", {None}),
    ],
)  # fmt: skip
def test_rules(text, false_texts):
    if false_texts is None:
        assert all(false_text.startswith("A ") and false_text.isupper() for false_text in all_by_rules(text))
        assert len(all_by_rules(text)) == 9
    else:
        assert all_by_rules(text) == false_texts


def test_the_article_follows_its_word():
    captions = ["It lies on the elephant.", "It lies on the plate."]
    assert all_by_rules("It lies on a zebra.", captions) == {"It lies on an elephant.", "It lies on a plate."}
    assert all_by_rules("It lies on an oven.", captions[1:]) == {"It lies on a plate."}


def test_nouns_come_from_other_captions_of_the_video_and_keep_their_number_and_kind():
    captions = ["A chef winks", "The players wink on the stage.", "Someone winks near the stoves"]
    assert all_by_rules("The toddler winks on the rug", captions) == {
        "The chef winks on the rug",
        "The toddler winks on the stage",
    }
    assert all_by_rules("The toddler winks on the rug") == {None}
    # What is true of another event is not false.
    assert all_by_rules("The toddler winks", ["The chef winks"]) == {None}


def test_rules_count_what_they_did():
    distort = RuleDistort()
    assert distort(["red", "nothing"], [{}, {}], rngs(2))[1] is None
    assert distort.report == {"colour": 1, "none": 1}


def test_rules_cover_most_captions_of_real_videos(real_data):
    path = real_data / "annotations" / "real_clips_events.jsonl"
    clips = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    captions = [[event["caption"] for event in clip["events"]] for clip in clips]
    results = [by_rules(caption, video) for video in captions for caption in video]
    assert np.mean([result is not None for result in results]) > 0.9


# Judging an answer


@pytest.mark.parametrize(
    ("text", "answer", "fault"),
    [
        ("A man opens a door", "A man closes a door", None),
        ("A man opens a door", " a  man OPENS a door!", "unchanged"),
        ("A man opens a door", "", "empty"),
        ("A man opens a door", " \n", "empty"),
        ("A man opens a door", "A man <evi> closes a door", "marker"),
        ("A man opens a door", "Here you are: a man closes a door", "too_long"),
        ("red", "yellow", None),
        ("red", "a bright yellow", "too_long"),
        ("男人打开了一扇门", "女人关上了一扇窗", None),
        ("男人打开了一扇门", "女人关上了一扇窗女人关上了一扇窗女人关上了一扇窗", "too_long"),
    ],
)
def test_distortion_fault(text, answer, fault):
    assert distortion_fault(text, answer) == fault


# Answers on disk


@settings(deadline=None)
@given(entries=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=5), cut=st.integers(1, 5))
def test_cache_keeps_whole_lines(tmp_path_factory, entries, cut):
    folder = tmp_path_factory.mktemp("cache")
    cache = AnswerCache(folder)
    for key, answer in entries.items():
        cache.add(key, answer)
    again = AnswerCache(folder)
    assert {key: again[key] for key in entries} == entries and "no such key" not in again
    if entries:
        (path,) = folder.iterdir()
        path.write_bytes(path.read_bytes()[:-cut])  # a crash in the middle of the last line
        *kept, last = entries
        cut_cache = AnswerCache(folder)
        assert all(key in cut_cache for key in kept)
        assert last not in cut_cache or cut == 1  # the line break alone


# An endpoint


class Endpoint:
    """A local server that speaks just enough of the protocol. `behave(n)` says what happens to the n-th request."""

    def __init__(self, behave, delay_s=0.0):
        self.behave, self.delay_s = behave, delay_s
        self.lock = threading.Lock()
        self.requests, self.headers, self.paths = [], [], []
        self.now = self.most_at_once = 0

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.now += 1
            self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(self.delay_s)
        reply = self.behave(number, body)
        with self.lock:
            self.now -= 1
        status, content = reply if isinstance(reply, tuple) else (200, reply)
        if status == 200 and isinstance(content, str):
            content = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        data = json.dumps(content).encode() if isinstance(content, dict) else content
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # by default a sixth connection at once may be reset


@contextmanager
def endpoint(behave, delay_s=0.0):
    state = Endpoint(behave, delay_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            state.handle(self)

        def log_message(self, *args):
            pass

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked_text(body):
    return body["messages"][0]["content"].rpartition("Sentence: ")[2]


def falsify(number, body):
    return asked_text(body).replace("opens", "closes")


def client(server, tmp_path, **options):
    return OpenAIDistort(server.url, "a-model", cache_dir=tmp_path / "cache", backoff_s=0.02, **options)


TEXTS = [f"Man {number} opens a door" for number in range(40)]
FALSE_TEXTS = [text.replace("opens", "closes") for text in TEXTS]


def test_endpoint_is_asked_concurrently_up_to_the_limit(tmp_path):
    with endpoint(falsify, delay_s=0.02) as server:
        distort = client(server, tmp_path, concurrency=4)
        assert distort(TEXTS, [{}] * 40, rngs(40)) == FALSE_TEXTS
        assert len(server.requests) == 40 and 2 <= server.most_at_once <= 4
        assert set(server.paths) == {"/v1/chat/completions"}
    assert distort.report == {"texts": 40, "asked": 40, "cached": 0, "retries": 0, "accepted": 40, "gave_up": 0}


def test_endpoint_that_fails_at_times_is_asked_again(tmp_path):
    def behave(number, body):
        if number % 5 == 1:
            return 429, {"error": "slow down"}
        if number % 5 == 3:
            return 500, b"oops"
        return falsify(number, body)

    with endpoint(behave) as server:
        distort = client(server, tmp_path, num_retries=20)
        assert distort(TEXTS, [{}] * 40, rngs(40)) == FALSE_TEXTS
        # On a busy machine a connection may break before the server sees the request: that is a retry too.
        assert 20 <= len(server.requests) - 40 <= distort.report["retries"]


def test_slow_answers_are_asked_for_again(tmp_path):
    def behave(number, body):
        time.sleep(3.0 if number == 0 else 0)
        return falsify(number, body)

    with endpoint(behave) as server:
        distort = client(server, tmp_path, timeout_s=1.0)
        assert distort(TEXTS[:3], [{}] * 3, rngs(3)) == FALSE_TEXTS[:3]
        assert len(server.requests) >= 4 and distort.report["retries"] >= 1


def test_nothing_is_asked_twice(tmp_path):
    with endpoint(falsify) as server:
        client(server, tmp_path)(TEXTS, [{}] * 40, rngs(40))
        url = server.url
    # Another object, in any order, with the server gone.
    again = OpenAIDistort(url, "a-model", cache_dir=tmp_path / "cache", num_retries=0)
    assert again(TEXTS[::-1], [{}] * 40, rngs(40)[::-1]) == FALSE_TEXTS[::-1]
    assert again.report["cached"] == 40 and again.report["asked"] == 0
    with endpoint(falsify) as server:
        same = client(server, tmp_path)
        same([TEXTS[0]] * 3, [{}] * 3, [np.random.default_rng(7) for _ in range(3)])
        assert len(server.requests) == 1
        # What decides the answer is part of its key.
        client(server, tmp_path, prompt="Falsify. Sentence: {text}")(TEXTS[:1], [{}], rngs(1))
        client(server, tmp_path, temperature=0.2)(TEXTS[:1], [{}], rngs(1))
        client(server, tmp_path)(TEXTS[:1], [{}], rngs(1, seed=5))
        assert len(server.requests) == 4


def test_a_crash_loses_no_answer(tmp_path):
    def behave(number, body):
        return falsify(number, body) if number < 25 else (401, {"error": "your credit is used up"})

    with endpoint(behave) as server:
        distort = client(server, tmp_path, concurrency=2)
        with pytest.raises(ConnectionError, match="status 401 after 0 retries.*credit is used up.*answers so far"):
            distort(TEXTS, [{}] * 40, rngs(40))
        assert len(server.requests) <= 25 + 4  # the rest was not sent
        server.behave = falsify
        server.requests.clear()
        distort = client(server, tmp_path)
        assert distort(TEXTS, [{}] * 40, rngs(40)) == FALSE_TEXTS
        assert len(server.requests) == 15 and distort.report["cached"] == 25


def test_an_endpoint_that_stays_away_is_an_error(tmp_path):
    with endpoint(lambda number, body: (503, b"down")) as server:
        with pytest.raises(ConnectionError, match="status 503 after 2 retries: down"):
            client(server, tmp_path, num_retries=2)(TEXTS[:1], [{}], rngs(1))
        assert len(server.requests) == 3
        gone = client(server, tmp_path, num_retries=1)
    with pytest.raises(ConnectionError, match="did not answer in 2 tries.*run again"):
        gone(TEXTS[:1], [{}], rngs(1))


def test_bad_answers_are_drawn_again_with_another_seed_and_temperature(tmp_path):
    answers = {
        "Man 0 opens a door": ["Man 0 opens a door.", "Sure! " * 20, "Man 0 closes a door"],
        "Man 1 opens a door": [""] * 3,
        "Man 2 opens a door": ['"Man 2 paints\na door"'],
        "Man 3 opens a door": ["<think>Hm, a door.</think>\n\nMan 3 eats\ud83d a door"],
    }
    asked = {text: [] for text in answers}

    def behave(number, body):
        text = asked_text(body)
        asked[text].append((body["seed"], body["temperature"]))
        return answers[text][len(asked[text]) - 1]

    with endpoint(behave) as server:
        distort = client(server, tmp_path)
        results = distort(list(answers), [{}] * 4, rngs(4))
    assert results == ["Man 0 closes a door", None, "Man 2 paints a door", "Man 3 eats a door"]
    assert [len(draws) for draws in asked.values()] == [3, 3, 1, 1]
    assert len({seed for seed, _ in asked["Man 1 opens a door"]}) == 3
    assert [temperature for _, temperature in asked["Man 1 opens a door"]] == [0.7, 0.8, 0.9]
    report = distort.report
    assert (report["rejected_unchanged"], report["rejected_too_long"], report["rejected_empty"]) == (1, 1, 3)
    assert (report["accepted"], report["gave_up"], report["asked"]) == (3, 1, 8)


def test_a_sentence_that_is_cut_off_does_not_count(tmp_path):
    cut = {"choices": [{"message": {"content": "Man 0 closes"}, "finish_reason": "length"}]}
    with endpoint(lambda number, body: (200, cut)) as server:
        assert client(server, tmp_path)(TEXTS[:1], [{}], rngs(1)) == [None]


def test_a_text_that_the_endpoint_refuses_is_counted(tmp_path):
    def behave(number, body):
        return (400, {"error": "content filter"}) if "Man 1 " in asked_text(body) else falsify(number, body)

    with endpoint(behave) as server:
        distort = client(server, tmp_path)
        assert distort(TEXTS[:3], [{}] * 3, rngs(3)) == [FALSE_TEXTS[0], None, FALSE_TEXTS[2]]
        assert distort.report["refused"] == 1
        # But an endpoint that wants nothing at all is set up wrongly.
        with pytest.raises(ConnectionError, match="refuses every request: status 400.*content filter"):
            client(server, tmp_path)(TEXTS[1:2], [{}], rngs(1, seed=3))


def test_another_server_behind_the_address_is_an_error(tmp_path):
    with endpoint(lambda number, body: (200, b"<html>Welcome</html>")) as server:
        with pytest.raises(ConnectionError, match="no chat completion: <html>.*base_url"):
            client(server, tmp_path)(TEXTS[:1], [{}], rngs(1))


def test_the_key_is_sent_and_kept_nowhere(tmp_path, monkeypatch):
    with endpoint(falsify) as server:
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        client(server, tmp_path)(TEXTS[:1], [{}], rngs(1))
        assert "Authorization" not in server.headers[0]
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
        distort = client(server, tmp_path)
        distort(TEXTS[1:2], [{}], rngs(1))
        assert server.headers[1]["Authorization"] == "Bearer sk-secret"
    assert b"sk-secret" not in pickle.dumps(distort)
    assert not any(b"sk-secret" in path.read_bytes() for path in (tmp_path / "cache").iterdir())


def test_backends_travel_to_other_processes(tmp_path):
    for distort in (RuleDistort(), OpenAIDistort("http://x/v1", "m", cache_dir=tmp_path), TransformersDistort("m")):
        assert vars(pickle.loads(pickle.dumps(distort))).keys() == vars(distort).keys()


def test_prompts_need_a_place_for_the_text_and_may_hold_braces(tmp_path):
    with pytest.raises(ValueError, match="write {text}"):
        OpenAIDistort("http://localhost/v1", "m", prompt="Falsify this.")
    assert "{text}" in PROMPT
    with endpoint(falsify) as server:
        distort = client(server, tmp_path, prompt='Like {"a": 1}. Sentence: {text}')
        distort(["He opens {this} {text}"], [{}], rngs(1))
        assert server.requests[0]["messages"][0]["content"] == 'Like {"a": 1}. Sentence: He opens {this} {text}'


# A local model


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    """A tiny random model: its answers mean nothing, but are answers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("local_model")
    tokenizer = train_tokenizer([*TEXTS, PROMPT], vocab_size=384)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight *= 3
    # It stops at many tokens, or it would never come to an end.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(6, 260, 5)]
    model.save_pretrained(folder)
    return folder


SHORT_PROMPT = "Falsify: {text}"


def generated(local_model, tmp_path, texts, generators, **options):
    """What the model wrote, judged or not."""
    distort = TransformersDistort(
        str(local_model), prompt=SHORT_PROMPT, num_draws=1, max_tokens=16, cache_dir=tmp_path, **options
    )
    distort(texts, [{}] * len(texts), generators)
    seeds = [int(np.random.default_rng([0, i]).integers(2**31 - 1)) for i in range(len(texts))]
    requests = [distort._request(text, seed, 0) for text, seed in zip(texts, seeds, strict=True)]
    return [distort._generate([request])[0] for request in requests], [
        distort.cache[distort._key(request)] for request in requests
    ]


@pytest.mark.parametrize("with_template", [True, False])
def test_local_model_gives_a_text_the_same_answer_in_any_batch(local_model, tmp_path, with_template):
    folder = local_model
    if not with_template:
        folder = tmp_path / "without_template"
        folder.mkdir()
        for path in local_model.iterdir():
            if path.name != "chat_template.jinja":
                (folder / path.name).write_bytes(path.read_bytes())
    texts = [TEXTS[0], "A much longer text about a man who opens a door", "opens", *TEXTS[1:6]]
    alone, in_batch = generated(folder, tmp_path / "cache", texts, rngs(len(texts)), batch_size=4)
    assert alone == in_batch
    assert len(set(alone)) > 1


def test_local_model_draws_different_answers_for_different_seeds(local_model, tmp_path):
    distort = TransformersDistort(str(local_model), prompt=SHORT_PROMPT, max_tokens=16, cache_dir=tmp_path)
    distort([TEXTS[0]] * 8, [{}] * 8, rngs(8))
    answers = set(distort.cache._loaded().values())
    assert distort.report["asked"] >= 8 and len(answers) > 1
    assert distort.report["accepted"] + distort.report["gave_up"] == 8
    greedy = TransformersDistort(
        str(local_model), prompt=SHORT_PROMPT, max_tokens=16, temperature=0, num_draws=1, cache_dir=tmp_path / "greedy"
    )
    greedy([TEXTS[0]] * 8, [{}] * 8, rngs(8))
    assert len(set(greedy.cache._loaded().values())) == 1


def test_local_model_is_not_loaded_for_cached_answers(local_model, tmp_path):
    def make():
        return TransformersDistort(str(local_model), max_tokens=6, cache_dir=tmp_path)

    first = make()
    results = first(TEXTS[:4], [{}] * 4, rngs(4))
    again = make()
    assert again(TEXTS[:4], [{}] * 4, rngs(4)) == results
    assert again._loaded is None and again.report["asked"] == 0


def test_local_model_sees_the_chat_template(local_model, tmp_path, monkeypatch):
    distort = TransformersDistort(str(local_model), prompt=SHORT_PROMPT, num_draws=1, max_tokens=2, cache_dir=tmp_path)
    distort._loaded = model, tokenizer = distort._load()
    seen = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kwargs: seen.append(kwargs["input_ids"]) or generate(**kwargs))
    distort([TEXTS[0]], [{}], rngs(1))
    assert tokenizer.decode(seen[0][0]) == f"<|user|>Falsify: {TEXTS[0]}<|end|><|assistant|>"
