"""The main job in miniature, on data drawn here: pretrain, finetune, eval, flops, predict. No network, no GPU.

The two drawn sets share their textures, so what the encoder learns on the first is worth something on the second:
the fine-tuning from it stands beside one from scratch with the same budget.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nota_seg.config import FinetuneConfig, PretrainConfig, build
from nota_seg.data.sources import SegmentationSource, open_source
from nota_seg.evaluate import evaluate
from nota_seg.finetune import finetune
from nota_seg.flops import cost
from nota_seg.inference import Protocol
from nota_seg.metrics import ConfusionMatrix, scores
from nota_seg.models.loading import load_model
from nota_seg.predict import predict
from util.errors import InputError
from util.files import write_json, write_text
from util.run_folder import RunFolder
from util.synthetic import draw_ade20k, draw_tiny_imagenet

MODEL = "segformer-b0"
COMMON = ["train.workers=1", "train.tracker=none", "train.log_every=20"]
PRETRAIN_STEPS, FINETUNE_STEPS = 370, 120


def demo(
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    pretrain_steps: int = PRETRAIN_STEPS,
    finetune_steps: int = FINETUNE_STEPS,
    pretrain: Callable[..., dict[str, Any]] | None = None,
) -> str:
    """Run it all; returns the closing table and leaves everything under `output_dir`.

    Args:
        output_dir: New or empty, or a demo's to replace with `overwrite`.
        overwrite: Replace what an earlier demo left.
        pretrain_steps: Optimiser steps of the pre-training.
        finetune_steps: Optimiser steps of each of the two fine-tunings.
        pretrain: The pre-training verb; the command line hands it in, `nota_seg` does not import it.
    """
    if pretrain is None:
        raise InputError("demo needs the pre-training verb: call it through `nota-seg demo`")
    output = Path(output_dir)
    prepare(output, overwrite=overwrite)
    started = time.monotonic()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of pictures this small several threads would have to wait for each other
    try:
        return _run(output, pretrain, pretrain_steps, finetune_steps, started)
    finally:
        torch.set_num_threads(threads)


def _run(
    output: Path, pretrain: Callable[..., dict[str, Any]], pretrain_steps: int, finetune_steps: int, started: float
) -> str:

    headline("drawing two data sets: textured shapes (Tiny-ImageNet's layout) and scenes (ADE20K's layout)")
    shapes = draw_tiny_imagenet(output / "data", classes=8, train_per_class=100, val_per_class=12, size=64, seed=0)
    scenes = draw_ade20k(output / "data", train=64, val=16, size=(96, 128), seed=0)

    headline(f"nota-seg pretrain: {MODEL}, {pretrain_steps} steps at 64 pixels")
    settings = build(
        PretrainConfig,
        options={
            "data.path": str(shapes),
            "model.name": MODEL,
            "data.input_size": 64,
            "train.max_steps": pretrain_steps,
        },
        sets=[
            *COMMON, "train.batch_size=32", "train.eval_every=200", "train.checkpoint_every=200", "data.repeats=1",
            "augment.auto_augment=null", "augment.random_erasing=0", "augment.mixup=0", "augment.cutmix=0",
            "augment.min_area=0.8", "augment.label_smoothing=0", "optim.lr=0.008", "model.drop_path_rate=0",
        ],
    )  # fmt: skip
    encoder = pretrain(settings, RunFolder(output / "pretrain"), cpu=True)

    results: dict[str, dict[str, Any]] = {}
    for name, weights in (("pre-trained", str(output / "pretrain" / "best")), ("from scratch", None)):
        headline(f"nota-seg finetune: {finetune_steps} steps, {name}")
        recipe = build(
            FinetuneConfig,
            options={
                "data.path": str(scenes),
                "model.name": MODEL,
                "pretrain": weights,
                "data.crop_size": (96, 96),
                "data.base_size": (128, 96),
                "train.max_steps": finetune_steps,
            },
            sets=[
                *COMMON, "train.batch_size=8", "train.eval_every=1000", "train.checkpoint_every=1000",
                "optim.lr=0.0003", "optim.decoder_lr_scale=3", "model.drop_path_rate=0", "data.scale=[0.75, 1.5]",
            ],
        )  # fmt: skip
        folder = output / f"finetune-{name.replace(' ', '-')}"
        finetune(recipe, RunFolder(folder), cpu=True)
        headline(f"nota-seg eval: {name}")
        model, class_names = load_model(folder / "best", "cpu")
        source = open_source(scenes)
        results[name] = evaluate(model, source, "val", Protocol(base_size=(128, 96)), device="cpu")
        write_json(folder / "eval.json", results[name])

    headline("nota-seg flops, nota-seg predict")
    model, class_names = load_model(output / "finetune-pre-trained" / "best", "cpu")
    price = cost(model, (512, 512))
    write_json(output / "flops.json", price)
    pictures = sorted((scenes / "images" / "validation").glob("*.jpg"))[:4]
    predict(
        model, pictures, output / "predictions", Protocol(base_size=(128, 96)), class_names=class_names, device="cpu"
    )
    grids = sorted((output / "finetune-pre-trained" / "predictions").glob("step-*.png"))
    shutil.copyfile(grids[-1], output / "prediction.png")

    constant = constant_prediction(open_source(scenes))
    lines = [
        "",
        f"{'on the validation scenes':32}{'mIoU':>8}{'mAcc':>8}{'aAcc':>8}",
        *(
            f"{name:32}{r['miou']:8.3f}{r['macc']:8.3f}{r['aacc']:8.3f}"
            for name, r in [
                ("constant (commonest class)", constant),
                (f"{MODEL} from scratch", results["from scratch"]),
                (f"{MODEL} pre-trained", results["pre-trained"]),
            ]
        ),
        "",
        f"pre-training top-1: {encoder['best']:.3f} (chance {1 / 8:.3f})",
        f"{MODEL} at 512x512: {price['params'] / 1e6:.3f} M parameters, {price['macs'] / 1e9:.2f} GMACs as executed, "
        f"{price['macs_reference'] / 1e9:.2f} in the textbook order",
        f"picture | truth | prediction: {output / 'prediction.png'}",
        f"{time.monotonic() - started:.0f} seconds in all; everything is in {output}",
    ]
    table = "\n".join(lines)
    write_text(output / "demo.txt", table + "\n")
    return table


def prepare(output: Path, *, overwrite: bool) -> None:
    """Only an empty place, or an earlier demo's with `overwrite`."""
    if output.exists() and any(output.iterdir()):
        is_demo = (output / ".nota-seg-demo").exists()
        if not overwrite or not is_demo:
            hint = "--overwrite replaces it" if is_demo else "name a new folder"
            raise InputError(f"{output} exists and is not empty: {hint}")
        shutil.rmtree(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / ".nota-seg-demo").touch()


def headline(text: str) -> None:
    print(f"\n== {text}", file=sys.stderr, flush=True)


def constant_prediction(source: SegmentationSource) -> dict[str, Any]:
    """The scores of always answering the commonest class of the validation labels: what any model must beat by far."""
    import torch

    labels = [source.read_label("val", i) for i in range(source.splits["val"])]
    counts = sum(np.bincount(label[label < source.num_labels], minlength=source.num_labels) for label in labels)
    matrix = ConfusionMatrix(source.num_labels, "cpu")
    for label in labels:
        truth = torch.from_numpy(label)
        matrix.update(torch.full_like(truth, int(np.argmax(counts))).long(), truth)
    return scores(matrix.matrix)
