# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of converting 150,000 made-up records in the form of E.T. Instruct 164K.

    python benchmarks/convert.py [NUM_RECORDS]

The conversion runs in a process of its own (Linux). Exits with 1 if it takes 2 minutes or more, or 1 GiB.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too
LIMIT_S, LIMIT_MB = 120, 1024
TASKS = ("tvg", "tal", "evs", "vhd", "dvc", "slc", "tvc", "gvq", "rvc")
WORDS = "a person cuts the onion and puts it into the pan with oil then stirs slowly until it is brown 🍳".split()


def make_record(index: int, rng: np.random.Generator) -> dict:
    task = TASKS[index % len(TASKS)]
    duration_s = round(float(rng.uniform(30, 300)), 3)
    times = np.sort(rng.choice(int(duration_s * 10), 2 * rng.integers(1, 8), replace=False)) / 10
    times = times.tolist()

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    question = f"Watch the video. It is about this: '{words(12)}'."
    if task in ("dvc", "slc", "tvc"):
        answer = " ".join(f"<vid> - <vid>, {words(9)}." for _ in times[::2])
    elif task == "gvq":
        times, answer = times[:2], f"{words(6).capitalize()}. This is shown in <vid> - <vid>."
    elif task == "rvc":
        question, answer = f"{question} What is done in <vid> - <vid>?", words(15)
    else:
        times = times[:2] if task in ("tvg", "vhd") else times
        answer = "It can be seen in " + ", ".join("<vid> - <vid>" for _ in times[::2]) + "."
    times = {"src": times[:2]} if task == "rvc" else {"tgt": times}
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    video = f"made/{index % 100_000:06d}.mp4"
    return {"task": task, "source": "made", "video": video, "duration": duration_s, **times, "conversations": turns}


def make_file(path: Path, num_records: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for index in range(num_records):
            file.write("[" if index == 0 else ", ")
            json.dump(make_record(index, rng), file, ensure_ascii=False)
        file.write("]")


def peak_mb() -> float:
    # Not getrusage: its maximum is handed down from the parent, which has made the file.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def convert_file(src: str, dst: str) -> None:
    from trl_temporal.data.convert import convert

    before_mb, start = peak_mb(), time.perf_counter()
    report = convert("etinstruct", src, dst, on_bad_record="skip")
    seconds = time.perf_counter() - start
    size_mb = Path(src).stat().st_size / 2**20
    print(
        f"{report.records:,} records ({size_mb:.0f} MiB) to {report.rows:,} rows, {len(report.skipped):,} left out: "
        f"{seconds:.1f} s, {report.rows / seconds:,.0f} rows/s, peak {peak_mb():.0f} MiB ({before_mb:.0f} imports)"
    )
    sys.exit(seconds >= LIMIT_S or peak_mb() >= LIMIT_MB)


def main() -> int:
    if sys.argv[1:2] == ["--convert"]:
        convert_file(*sys.argv[2:])
    num_records = int(sys.argv[1]) if len(sys.argv) > 1 else 150_000
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "et_instruct_vid.json"
        make_file(src, num_records)
        command = [sys.executable, __file__, "--convert", str(src), str(Path(folder) / "converted")]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
