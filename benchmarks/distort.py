# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
How many texts of real annotations the rules can falsify, and how fast they and the client of an endpoint are.

    python benchmarks/distort.py [ANNOTATIONS]

ANNOTATIONS is a folder with the files of YouCook2, Charades-STA, QVHighlights and NExT-GQA; without it, only the
client is measured, against a server in this process that answers after 0.1 s.
"""

import csv
import json
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too

from trl_temporal.synthesis.distort import OpenAIDistort, RuleDistort  # noqa: E402

NUM_REQUESTS = 2000
DELAY_S = 0.1


def read_texts(folder: Path) -> dict[str, list[list[str]]]:
    """Texts of each data set, by row."""

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    youcook2 = json.loads(read("youcook2_val_timechat_noasr.json"))["annotations"]
    charades = json.loads(read("charades_sta_test_timechat.json"))["annotations"]
    qvhighlights = [json.loads(line) for line in read("qvhighlights_val.jsonl").splitlines()]
    nextgqa = csv.DictReader(read("nextgqa_val.csv").splitlines())
    return {
        "YouCook2 steps": [row["pure_cap"].split(". ") for row in youcook2],
        "Charades-STA sentences": [[row["caption"]] for row in charades],
        "QVHighlights queries": [[row["query"]] for row in qvhighlights],
        "NExT-GQA answers": [[row["answer"]] for row in nextgqa],
    }


def measure_rules(name: str, rows: list[list[str]]) -> None:
    texts = [text for row in rows for text in row]
    contexts = [{"captions": row} for row in rows for _ in row]
    rngs = [np.random.default_rng(index) for index in range(len(texts))]
    start = time.perf_counter()
    results = RuleDistort()(texts, contexts, rngs)
    seconds = time.perf_counter() - start
    share = np.mean([result is not None for result in results])
    print(f"{name}: {len(texts)} texts, {share:.1%} falsified, {len(texts) / seconds:,.0f} texts/s")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(DELAY_S)
        body = json.dumps({"choices": [{"message": {"content": "A man closes a door"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


def measure_client() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        for what in ("asked", "cached"):
            distort = OpenAIDistort(f"http://127.0.0.1:{server.server_port}/v1", "m", concurrency=64, cache_dir=folder)
            rngs = [np.random.default_rng(index) for index in range(NUM_REQUESTS)]
            start = time.perf_counter()
            distort(["A man opens a door"] * NUM_REQUESTS, [{}] * NUM_REQUESTS, rngs)
            seconds = time.perf_counter() - start
            print(f"endpoint: {distort.report[what]} {what}, {NUM_REQUESTS / seconds:,.0f} texts/s")
    server.shutdown()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for name, rows in read_texts(Path(sys.argv[1])).items():
            measure_rules(name, rows)
    measure_client()
