"""A run as a model card: Hugging Face's README.md with its metadata, and what a reader must know to trust it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from nota_seg.models.checkpoints import format_name
from nota_seg.report.compare import cost_of, number
from nota_seg.report.runs import Run, SeedRun, load_run, read_json
from util.errors import InputError

# What the authors of published weights allow, by the name of the format or a word in the name of the file.
LICENCES = [
    (
        r"segformer|mit[_-]?b\d",
        "NVIDIA's SegFormer weights are under the NVIDIA Source Code License for SegFormer: research and evaluation "
        "only, no commercial use. What is trained from them inherits that.",
        "nvidia-source-code-license-for-segformer",
    ),
    (r"segnext|mscan", "SegNeXt's weights are published under Apache-2.0.", None),
    (r"pvt", "PVTv2's weights are published under Apache-2.0.", None),
    (r"next-?vit", "Next-ViT's weights are published under Apache-2.0.", None),
    (r"swin", "Swin's weights are published under the MIT licence.", None),
    (r"beit", "BEiT's weights are published under the MIT licence.", None),
]
IMAGENET = "Published encoders were trained on ImageNet, whose pictures are for non-commercial research."
DATA = [
    (r"ade", "ADE20K: the pictures are for non-commercial research and education, the annotations under BSD-3-Clause."),
    (r"camvid", "CamVid: for research; ask its authors before any other use."),
    (r"tiny.?imagenet", "Tiny-ImageNet: a part of ImageNet, whose pictures are for non-commercial research."),
]


@dataclass(frozen=True)
class Source:
    """One link of the chain of weights, the newest first."""

    run: SeedRun | None  # a run of ours, or ...
    published: str | None  # ... the name of a file, with its format where that can be read
    note: str | None = None  # on its licence
    licence: str | None = None  # its name, where it binds what is trained from it


def choose(run: Run) -> SeedRun:
    """The seed with the best score."""
    return max(run.seeds, key=lambda seed: seed.score or 0)


def sources(run: SeedRun) -> Iterator[Source]:
    """Where the weights of a run come from, back to random ones or a published file."""
    seen: set[Path] = set()
    while run.path not in seen:
        seen.add(run.path)
        yield Source(run, None)
        start = run.config.get("pretrain")
        if not start:
            return
        folder = next((f for f in (Path(start), *list(Path(start).parents)[:2]) if (f / "run.json").exists()), None)
        if folder is None:
            yield published(Path(start))
            return
        run = SeedRun.load(folder)


def published(path: Path) -> Source:
    """A file of someone else's: its format, where it is still there to be read, and what that means for its licence."""
    try:
        found = format_name(path)
    except (InputError, OSError):
        found = None
    if found == "nota-seg":
        found = None  # converted before: the folder does not say from what
    name = f"{path.name} ({found})" if found else path.name
    for pattern, note, licence in LICENCES:
        if re.search(pattern, f"{found or ''} {path.name}", re.IGNORECASE):
            return Source(None, name, f"{note} {IMAGENET}", licence)
    return Source(None, name, f"The licence of {path.name} is not known here: ask where it comes from.")


def model_card(path: str | Path, *, size: tuple[int, int] = (512, 512)) -> str:
    """The README.md of a run, or of the best seed of a folder of seeds.

    Raises:
        InputError: No such run.
    """
    whole = load_run(Path(path), Path(path).resolve().name)
    run = choose(whole)
    chain = list(sources(run))
    model = str(run.config["model"]["name"])
    parts = [
        f"---\n{metadata(run, chain, model).to_yaml()}\n---",
        f"# {model} on {data_name(run)}",
        _opening(run, model),
        "## Results\n\n" + _results(whole, run),
        "## Cost\n\n" + _cost(whole, size),
        "## Use\n\n" + _use(run),
        "## Training\n\n" + _training(chain),
        "## Licence\n\n" + _licence(chain),
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def data_name(run: SeedRun) -> str:
    path = str(run.config["data"]["path"])
    return Path(path).name or path


def metadata(run: SeedRun, chain: Sequence[Source], model: str) -> ModelCardData:
    """The YAML at the top of the card."""
    bound = next((s.licence for s in chain if s.licence), None)
    evaluation = run.evaluation or {}
    segmentation = run.phase == "finetune"
    keys = [("miou", "mean_iou", "mIoU"), ("aacc", "accuracy", "pixel accuracy")]
    keys = keys if segmentation else [("top1", "accuracy", "top-1")]
    task, name = ("image-segmentation" if segmentation else "image-classification"), data_name(run)
    results = [
        EvalResult(
            task_type=task, dataset_type=_identifier(name), dataset_name=name,
            dataset_split=evaluation.get("protocol", {}).get("split", "val"),
            metric_type=kind, metric_name=label, metric_value=round(evaluation[key], 4),
        )
        for key, kind, label in keys if evaluation.get(key) is not None
    ]  # fmt: skip
    scored: dict[str, Any] = {"model_name": f"{model}-{_identifier(name)}", "eval_results": results} if results else {}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task,
        tags=["nota-seg", "semantic-segmentation" if segmentation else "image-classification", _identifier(model)],
        license="other" if bound else None,
        license_name=bound,
        metrics=[r.metric_type for r in results] or None,
        **scored,
    )


def _identifier(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "data"


def _opening(run: SeedRun, model: str) -> str:
    classes = len((run.evaluation or {}).get("per_class", ()))
    kind = "An image classifier" if run.phase == "pretrain" else "Semantic segmentation"
    if run.phase != "pretrain" and classes:
        kind += f" with {classes} classes"
    return f"{kind}: `{model}`, trained with nota-seg."


def _results(whole: Run, run: SeedRun) -> str:
    evaluation = run.evaluation
    if evaluation is None:
        return "Not evaluated."
    if "miou" not in evaluation:
        return f"Top-1 {100 * evaluation['top1']:.2f} %, top-5 {100 * evaluation['top5']:.2f} %."
    rows = [
        ("mIoU", "miou"),
        ("mean class accuracy", "macc"),
        ("pixel accuracy", "aacc"),
        ("boundary IoU", "boundary_iou"),
    ]
    lines = ["| | % |", "|---|---:|"]
    lines += [f"| {label} | {100 * evaluation[k]:.2f} |" for label, k in rows if evaluation.get(k) is not None]
    protocol = evaluation["protocol"]
    shown = ", ".join(f"{k} {v}" for k, v in protocol.items() if v not in (None, False))
    text = "\n".join(lines) + f"\n\n{evaluation['images']} pictures, against labels at their original size; {shown}."
    if whole.std is not None:
        text += (
            f"\n\nThis is the best of {len(whole.scores)} seeds; over all of them mIoU is {number(whole.mean)} ± "
            f"{number(whole.std)} (mean and standard deviation)."
        )
    classes = [f"| {name} | {number(100 * v['iou']) if v['iou'] is not None else '–'} |" for name, v in
               evaluation["per_class"].items()]  # fmt: skip
    table = "\n".join(["| class | IoU % |", "|---|---:|", *classes])
    return f"{text}\n\n<details><summary>By class</summary>\n\n{table}\n\n</details>"


def _cost(run: Run, size: tuple[int, int]) -> str:
    pixels = "x".join(map(str, size))
    try:
        price = cost_of(run, size)
        lines = [
            f"- {price['params'] / 1e6:.3f} M parameters",
            f"- {price['macs'] / 1e9:.2f} GMACs at {pixels} as executed ({price['macs_reference'] / 1e9:.2f} in the "
            "order of the paper); a multiply-accumulate is two FLOPs",
        ]
    except (InputError, ImportError) as error:
        lines = [f"- not counted: {error}"]
    lines += [f"- p50 {t.p50:.1f} ms on {t.setting}" for t in run.latencies.values()]
    for file in sorted({f for folder in {run.path, run.first.path} for f in folder.glob("latency-*.json")}):
        card = read_json(file)["card"]
        facts = {k: v for k, v in card.items() if k != "id" and v not in (None, "", [], {})}
        lines.append(f"- device card {card['id']}: " + ", ".join(f"{k} {_plain(v)}" for k, v in facts.items()))
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return " ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _use(run: SeedRun) -> str:
    auto = "AutoModelForSemanticSegmentation" if run.phase == "finetune" else "AutoModelForImageClassification"
    last = (
        "labels = model.predict_labels(pixels)  # (1, height, width)"
        if run.phase == "finetune"
        else "label = model(pixels).logits.argmax(dim=1)"
    )
    return f"""```python
import nota_seg  # makes transformers know the architecture
from PIL import Image
from transformers import AutoImageProcessor, {auto}

folder = "."  # this repository
model = {auto}.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
pixels = processor(Image.open("street.jpg").convert("RGB"), return_tensors="pt").pixel_values
{last}
```"""


def _training(chain: Sequence[Source]) -> str:
    blocks = []
    for source in chain:
        if source.run is None:
            blocks.append(f"Weights to start from: {source.published}.")
            continue
        run, facts = source.run, source.run.facts
        train = run.config["train"]
        length = f"{train['max_steps']} steps" if train.get("max_steps") else f"{train['epochs']} epochs"
        versions = facts.get("versions", {})
        shown = ", ".join(f"{k} {versions[k]}" for k in ("torch", "transformers") if k in versions)
        blocks.append(
            f"{'Fine-tuned' if run.phase == 'finetune' else 'Pre-trained'} on {data_name(run)}: {length} of "
            f"{train['batch_size'] * train['accumulate'] * facts.get('processes', 1)} pictures, seed "
            f"{facts.get('seed')}, {facts.get('device')}, precision {facts.get('precision')}, {shown}, "
            f"code {str(facts.get('git') or 'unknown')[:12]}.\n\n```bash\n{command(facts)}\n```"
        )
    if chain[-1].run is not None:
        blocks.append("It started from random weights.")
    return "\n\n".join(blocks)


def command(facts: dict[str, Any]) -> str:
    """The command of a run, with the last part of each path only: where things lay is nobody's business."""
    words = [str(w) for w in facts.get("command") or []][1:]
    return " ".join(["nota-seg", *(shlex.quote(Path(w).name if Path(w).is_absolute() else w) for w in words)])


def _licence(chain: Sequence[Source]) -> str:
    lines = [f"- {s.note}" for s in chain if s.note]
    for source in chain:
        if source.run is not None:
            name = data_name(source.run)
            lines += [f"- {note}" for pattern, note in DATA if re.search(pattern, name, re.IGNORECASE)][:1] or [
                f"- Data {name}: its licence is not known here."
            ]
    if not any(s.note for s in chain):
        lines.insert(0, "- No published weights were used: all weights come from the runs above.")
    return "\n".join(dict.fromkeys(lines)) + "\n\nThese are notes, not legal advice."
