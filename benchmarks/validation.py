"""Validation of a split from the command line to the scores, against a loop as people write it.

The peer is `benchmarks/validation_peer.py`: transformers' model and image processor, interpolate and argmax, and
torchmetrics. Each run is a process of its own, so that start-up counts. Pictures are CamVid's validation split where
`NOTA_SEG_DATA` names a folder that holds it, drawn scenes of its size elsewhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.common import Result, paired, real_data
from benchmarks.pairs import pair

CLASSES = 11  # of CamVid
SIZE = (360, 480)
TOLERANCE = 1e-4  # ties of the argmax fall to either class


def data(folder: Path, drawn: int) -> tuple[Path, str]:
    """Where the pictures are, and their name."""
    real = real_data() / "camvid"
    if real.is_dir():
        return real, "CamVid val"
    from util.synthetic import draw_ade20k

    return draw_ade20k(folder, train=1, val=drawn, size=SIZE), f"{drawn} drawn scenes"


def command(words: list[str], result: Path) -> float:
    """Run it to its end; the mIoU that it wrote."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return float(json.loads(result.read_text(encoding="utf-8"))["miou"])


def run(quick: bool) -> list[Result]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root, what = data(folder / "data", 8 if quick else 64)
        classes = CLASSES if what.startswith("CamVid") else 8
        ours, theirs = pair("b0", classes)
        ours.save_pretrained(folder / "ours")
        theirs.save_pretrained(folder / "theirs")
        out = folder / "ours.json", folder / "theirs.json"
        # The peer looks at pictures as they are: so must ours here.
        words = ["eval", "--data-dir", str(root), "--base-size", "none", "--device", "cpu", "--json", str(out[0])]
        run_ours = partial(command, ["-m", "nota_seg.cli", *words, "--pretrain", str(folder / "ours")], out[0])
        words = [str(root), str(folder / "theirs"), str(out[1])]
        run_theirs = partial(command, ["-m", "benchmarks.validation_peer", *words], out[1])
        scores = run_ours(), run_theirs()
        timing = paired(run_ours, run_theirs, 1 if quick else 5, 0)
        return [
            Result(
                f"validation, whole command, B0, {what}", timing.ours, timing.theirs, timing.ratio, 3.0, 6.0,
                abs(scores[0] - scores[1]) <= TOLERANCE,
                f"transformers, interpolate, argmax, torchmetrics; mIoU {scores[0]:.6f} and {scores[1]:.6f}; ours also "
                f"measures boundary IoU; quartiles {timing.quartiles[0]:.2f} to {timing.quartiles[1]:.2f}",
            )
        ]  # fmt: skip
