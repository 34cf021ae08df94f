# Copyright 2026 The trl_temporal authors. Licensed under the Apache License, Version 2.0.
"""
Time and peak memory of decoding a long video: 10 minutes of 640x480 h264 at 30 fps, sampled at 1 fps to 224 px.

    python benchmarks/decode_memory.py [pyav|torchcodec|decord]

Decoding runs in a process of its own (Linux). Exits with 1 if it takes 300 MB or more above the imports.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed, too
LIMIT_MB = 300
MINUTES, FPS, WIDTH, HEIGHT, SIZE = 10, 30, 640, 480, 224


def make_video(path: Path) -> None:
    """A drifting gradient with noise, so that there is something to code in every frame."""
    noise = np.random.default_rng(0).integers(0, 24, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    gradient = np.stack([columns % 200, rows % 200, (rows + columns) % 200], axis=-1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": "250"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(MINUTES * 60 * FPS):
            # Still for most of the time: the point is the decoder's memory, not the encoder's time.
            shifted = np.roll(gradient, index // 5, axis=1) + noise
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        container.mux(stream.encode())


def peak_mb() -> float:
    # Not getrusage: its maximum is handed down from the parent, which has encoded a video.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def decode(path: str, backend: str) -> None:
    from trl_temporal.video import load_video, probe_video

    probe_video(path)  # imports what the decoder needs
    if backend == "torchcodec":
        import torchcodec.decoders  # noqa: F401
    before_mb = peak_mb()
    start = time.perf_counter()
    video = load_video(path, fps=1, size=SIZE, backend=backend)
    seconds = time.perf_counter() - start
    above_mb = peak_mb() - before_mb
    assert video.frames.shape == (MINUTES * 60, SIZE, SIZE, 3), video.frames.shape
    assert np.allclose(video.timestamps_s, np.arange(MINUTES * 60), atol=1e-3)
    print(
        f"{backend}: {len(video.frames)} frames in {seconds:.1f} s; peak {above_mb:.0f} MB above the imports "
        f"({before_mb:.0f} MB), of which {video.frames.nbytes / 2**20:.0f} MB are the frames returned; "
        f"limit {LIMIT_MB} MB"
    )
    sys.exit(above_mb >= LIMIT_MB)


def main() -> None:
    backend = sys.argv[1] if len(sys.argv) > 1 else "pyav"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.mp4"
        start = time.perf_counter()
        make_video(path)
        print(f"made {path.name}: {path.stat().st_size / 2**20:.0f} MB in {time.perf_counter() - start:.0f} s")
        sys.exit(subprocess.run([sys.executable, __file__, "--decode", str(path), backend]).returncode)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--decode"]:
        decode(sys.argv[2], sys.argv[3])
    else:
        main()
