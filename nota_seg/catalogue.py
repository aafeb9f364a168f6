"""What there is to compose and what it costs: the tables of `nota-seg models` and of docs/models.md."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from nota_seg.models import external
from nota_seg.models.architecture import PER_STAGE
from nota_seg.models.network import has_textbook, textbook
from nota_seg.models.registry import BLOCKS, DECODERS
from nota_seg.models.study import STUDY
from nota_seg.models.zoo import create_config, create_model, family_of
from util.flops import Cost, count, outlined

Progress = Callable[[int], object]
TOLERANCE = 0.005  # of a figure of the study, relative


def model_table(names: Sequence[str], *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """What `nota-seg models` shows of each name: family, components, cost at 512x512 with 150 classes.

    The blocks of a stage cost the same, so a model of one block a stage is counted and its blocks are multiplied: B5
    takes no longer than B0, and models that differ in depth alone are counted once.
    """
    rows = []
    known: dict[str, list[tuple[int, list[int]]]] = {}
    for name in names:
        if external.library_of(name):
            rows.append(outlined(partial(_external_row, name), partial(create_model, name)))
            if progress is not None:
                progress(1)
            continue
        config = create_config(name)
        # A stage whose blocks are of different kinds is counted as it is.
        repeats = [1 if s["blocks"] else s["depth"] for s in config.stages]
        depths = [s["depth"] // n for s, n in zip(config.stages, repeats, strict=True)]
        stages = [{**s, "depth": d} for s, d in zip(config.stages, depths, strict=True)]
        key = json.dumps([stages, config.decoder])
        if key not in known:
            known[key] = outlined(_by_stage, partial(create_model, name, depths=depths))
        executed, reference = (
            whole + sum(blocks * (n - 1) for blocks, n in zip(by_stage, repeats, strict=True))
            for whole, by_stage in known[key]
        )
        with torch.device("meta"):
            params = sum(p.numel() for p in create_model(name).parameters())
        rows.append(
            {
                "name": name,
                "family": family_of(name),
                "components": config.components(),
                "params": params,
                "gmacs": round(executed / 1e9, 3),
                "gmacs_reference": round(reference / 1e9, 3),
            }
        )
        if progress is not None:
            progress(1)
    return rows


def _external_row(name: str, model: Any) -> dict[str, Any]:
    executed, reference = _in_both_orders(model)
    return {
        "name": name,
        "family": family_of(name),
        "components": model.config.components(),
        "params": executed.params,
        "gmacs": round(executed.macs / 1e9, 3),
        "gmacs_reference": round(reference.macs / 1e9, 3),
    }


def _by_stage(model: Any) -> list[tuple[int, list[int]]]:
    """MACs of the whole model and of the first block of each stage, as executed and in the textbook order."""
    blocks = [f"encoder.stages.{i}.blocks.0" for i in range(len(model.config.stages))]
    return [(cost.macs, [cost.by_part[b] for b in blocks]) for cost in _in_both_orders(model, blocks)]


def _in_both_orders(model: Any, parts: Sequence[str] = ()) -> list[Cost]:
    """As executed and in the textbook order; counted once where these are the same."""
    result = []
    for context in (nullcontext(), textbook(model)) if has_textbook(model) else (nullcontext(),):
        with context:
            result.append(count(model, (1, 3, 512, 512), warm_up=(1, 3, 64, 64), parts=parts))
    return [result[0], result[-1]]


def _in_textbook(size: int, model: Any) -> Cost:
    with textbook(model):
        return count(model, (1, 3, size, size), warm_up=(1, 3, 64, 64))


def study_table(*, progress: Progress | None = None) -> list[dict[str, Any]]:
    """The study's rows: what it printed, what is counted here, and a note where the two differ by over 0.5%.

    Returns:
        A dictionary a row: `variant`, `name` (None where nothing can be built), `size`, `note`, and `printed` and
        `counted`, each with `params` in millions, `layers` (GMACs without attention products and resizing) and `gmacs`
        (all). `counted` is None without a name.
    """
    rows = []
    for row in STUDY:
        counted = None
        if row.name is not None:
            price = outlined(partial(_in_textbook, row.size), partial(create_model, row.name))
            layers = price.macs - price.attention - price.by_operator.get("upsample_bilinear2d", 0)
            counted = {
                "params": round(price.params / 1e6, 3),
                "layers": round(layers / 1e9, 3),
                "gmacs": round(price.macs / 1e9, 3),
            }
        printed = {"params": row.params, "layers": row.layers, "gmacs": row.gmacs}
        rows.append(
            {"variant": row.variant, "name": row.name, "size": row.size, "printed": printed, "counted": counted,
             "note": row.note}
        )  # fmt: skip
        if progress is not None:
            progress(1)
    return rows


def agrees(row: dict[str, Any]) -> bool:
    """Whether all three figures of a row of the study are within 0.5% of the printed ones."""
    printed, counted = row["printed"], row["counted"]
    return counted is not None and all(abs(counted[k] / printed[k] - 1) <= TOLERANCE for k in printed)


def component_table() -> list[tuple[str, str, dict[str, Any], str]]:
    """Kind, name, own options with defaults, and the first line of its file, of every registered component."""
    rows = []
    for kind, registry in {**PER_STAGE, "block": BLOCKS, "decoder": DECODERS}.items():
        for name in registry:
            cls = registry.get(name)
            text = inspect.getdoc(sys.modules[cls.__module__]) or ""
            rows.append((kind, name, registry.options(name), " ".join(text.split("\n\n")[0].split())))
    return rows


def markdown(models: list[dict[str, Any]], study: list[dict[str, Any]]) -> str:
    """docs/models.md."""
    lines = [
        "# Models and components",
        "",
        "Written by `nota-seg models --markdown > docs/models.md`; a test holds it to the registry.",
        "",
        "A name is a base and a list of changes: `segformer-b2-lsra-dest-rskip`. A change is the name of a component",
        "below and replaces that kind in every stage, or the decoder. Per stage, and with options:",
        "`--set 'model.mixers=[msca,msca,lsra,lsra]'`, `--set model.mixer.name=lsra --set model.mixer.proj=false`.",
        "",
        "## Components",
        "",
        *_table(
            ["kind", "name", "options", "what it is"],
            [[k, f"`{n}`", ", ".join(f"{o}={v!r}" for o, v in opts.items()), text]
             for k, n, opts, text in component_table()],
        ),
        "",
        "## Models",
        "",
        "512x512, 150 classes. GMACs as executed, and in the order of the papers.",
        "",
        "Beside these:",
        "",
        *[f"- `{name}`: {text}." for name, _, text in (f.partition(": ") for f in external.FORMS.values())],
        "",
        *_table(
            ["model", "params M", "GMACs", "textbook", "components"],
            [[f"`{r['name']}`", f"{r['params'] / 1e6:.3f}", f"{r['gmacs']:.2f}", f"{r['gmacs_reference']:.2f}",
              summary(r["components"])] for r in models],
            numbers=(1, 2, 3),
        ),
        "",
        "## The study's table",
        "",
        "What is counted here, in the order of the papers, beside what the SegFormer study printed: parameters in",
        "millions, GMACs of layers (no attention products, no resizing) and of everything.",
        "",
        *_table(
            ["variant", "model", "params", "printed", "layers", "printed", "GMACs", "printed", ""],
            study_cells(study),
            numbers=range(2, 8),
        ),
        "",
        *[f"{number}. {row['note']}." for number, row in enumerate((r for r in study if r["note"]), start=1)],
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def study_cells(study: list[dict[str, Any]]) -> list[list[str]]:
    """The study's rows as text: variant, model, counted and printed figures in turn, number of the note."""
    cells, number = [], 0
    for row in study:
        number += bool(row["note"])
        figures = []
        for key, digits in (("params", 3), ("layers", 3), ("gmacs", 2)):
            ours = "-" if row["counted"] is None else f"{row['counted'][key]:.{digits}f}"
            figures += [ours, f"{row['printed'][key]:.{digits}f}"]
        cells.append(
            [row["variant"], row["name"] or "-", *figures, f"[{number}]" if row["note"] else ""],
        )
    return cells


def summary(components: dict[str, list[str]]) -> str:
    """Components in one line; a kind that is the same in every stage once."""
    return "; ".join(f"{kind} {', '.join(dict.fromkeys(names))}" for kind, names in components.items())


def _table(head: list[str], rows: list[list[str]], numbers: Sequence[int] = ()) -> list[str]:
    rule = ["---:" if i in numbers else "---" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]
