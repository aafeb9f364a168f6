"""Models as files that run without this project: ONNX, torch.export, ONNX in int8; each checked before it is written.

The graph takes `pixel_values` (B, 3, H, W), normalised, of any size, and gives `logits` as the model does. How pictures
are prepared (mean, deviation, size) and the names of the classes are in the ONNX file's metadata.

Four things a trace would get wrong are done for it: adaptive pooling has symbolic cells (`_pool`); sizes that happen to
be equal in the example are not taken to be equal (it is odd); attention is written out, so that its result lies in
memory as the exporter thinks; and assertions about sizes that only chose between equal ways to compute are dropped.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from nota_seg.evaluate import evaluate
from nota_seg.inference import Protocol, statistics_of, to_pixels
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.pixels import normalise
from util import onnx_session
from util.errors import InputError, did_you_mean
from util.files import whole_folder, write_json
from util.synthetic import draw_scene

if TYPE_CHECKING:
    from nota_seg.data.sources import SegmentationSource

FORMATS = {"onnx": "model.onnx", "pt2": "model.pt2", "int8": "model-int8.onnx"}
EXAMPLE = (2, 225, 289)  # pictures, height, width; odd at every stage, so that no two sizes are equal by chance
SMALLEST = 32  # pixels a side
SIZES = ((224, 224), (256, 320), (161, 243), (97, 130), (40, 33))  # that a dynamic file is checked at
TOLERANCE = 1e-3  # of the largest logit
AGREEMENT = 0.999  # of the pixels' labels; the others are ties


class Logits(nn.Module):
    """A model that returns a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


class Exported(nn.Module):
    """A file that stands where its model stood: what evaluates models evaluates it."""

    def __init__(self, config: Any, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config = config
        self.call = call

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.call(pixel_values))


def _cells(length: Any, cells: int, like: Tensor) -> Tensor:
    """(cells, length): the average of each cell of adaptive pooling as a row."""
    i = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    inside = ((position >= i * length // cells) & (position < -(-(i + 1) * length // cells))).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _pool(x_BCHW: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d` whose cells depend on a size that is not known yet: two products of small matrices."""
    H, W = x_BCHW.shape[2:]
    P, Q = (output_size, output_size) if isinstance(output_size, int) else output_size
    return _cells(H, P, x_BCHW) @ (x_BCHW @ _cells(W, Q, x_BCHW).t())


def _attend(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    """Attention of a model in evaluation mode; transformers' names every argument."""
    if is_causal:
        raise NotImplementedError("causal attention")
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    return (scores if attn_mask is None else scores + attn_mask).softmax(dim=-1) @ v


@contextmanager
def _exportable(dynamic: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attend))
        if dynamic:
            stack.enter_context(mock.patch.object(F, "adaptive_avg_pool2d", _pool))
        yield


def export_program(module: nn.Module, example: Any, *, dynamic: bool = False) -> ExportedProgram:
    """`torch.export` of a module in evaluation mode.

    Args:
        module: On the CPU; takes one argument.
        example: That argument: a tensor, or a list of tensors.
        dynamic: Batch, height and width of the (one) tensor may be others than the example's.
    """
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},) if dynamic else None
    with _exportable(dynamic), torch.inference_mode(False):
        example = [x.clone() for x in example] if isinstance(example, list) else example.clone()
        program = torch.export.export(
            module.eval(), (example,), dynamic_shapes=shapes, strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    for symbol, allowed in list(program.range_constraints.items()):
        # Tracing takes a map of one cell for a case of its own (61 pixels, reduced by 4 x 8); results are the same.
        program._range_constraints[symbol] = ValueRanges(min(allowed.lower, SMALLEST), allowed.upper)
    return program


def onnx_bytes(program: ExportedProgram, metadata: dict[str, str] | None = None) -> bytes:
    """An ONNX graph, in bytes."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _exportable(False), contextlib.redirect_stdout(io.StringIO()):
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    assert made is not None
    proto = made.model_proto
    for key, value in (metadata or {}).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def export(
    model: nn.Module,
    class_names: Sequence[str],
    output_dir: str | Path,
    *,
    formats: Sequence[str] = ("onnx",),
    size: tuple[int, int] = (512, 512),
    source: SegmentationSource | None = None,
    calibration: int = 32,
    limit: int | None = None,
    overwrite: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Write a model in other formats, checked against its own logits.

    Args:
        model: On the CPU.
        class_names: In the order of the classes.
        output_dir: New; `model.onnx`, `model.pt2`, `model-int8.onnx` as asked for, and `export.json`.
        formats: Of `FORMATS`.
        size: (height, width) of a file that cannot be dynamic.
        source: Data for the calibration (its training pictures) and for mIoU (its validation pictures).
        calibration: Pictures that the ranges of int8 are taken from.
        limit: Validation pictures for mIoU; None: all.
        overwrite: Replace an earlier export.
        say: Told what happens.

    Returns:
        What `export.json` holds: `classes`, `image_mean`, `image_std`, `image_size`, and by format `file`, `bytes`,
        `dynamic`, `size`, `logits` (largest difference, relative to the largest logit), `labels` (share of equal
        pixels) and, with a source, `miou` beside `miou_torch`.

    Raises:
        InputError: An unknown format, int8 without pictures, a folder that exists, a model that cannot be exported, or
            a file whose results differ from the model's.
    """
    for one in formats:
        if one not in FORMATS:
            raise InputError(f"unknown format {one!r}: {did_you_mean(one, FORMATS)}")
    if "int8" in formats and source is None:
        raise InputError("int8 is calibrated on real pictures: give --data-dir")
    if {"onnx", "int8"} & set(formats):
        onnx_session.require("export to ONNX")
    output = Path(output_dir)
    taken = output.exists() and (not output.is_dir() or any(output.iterdir()))
    if taken and not (overwrite and (output / "export.json").exists()):
        raise InputError(f"{output} exists: name a new folder, or --overwrite an earlier export")
    config: Any = model.config
    mean, std = statistics_of(model)
    base = getattr(config, "image_size", None)
    facts = {
        "model": getattr(config, "zoo_name", None) or type(model).__name__,
        "classes": list(class_names),
        "image_mean": list(mean),
        "image_std": list(std),
        "image_size": list(base) if base else None,
    }
    wrapped = Logits(model.eval())
    protocol = Protocol(base_size=tuple(base) if base else None)
    result: dict[str, Any] = {**facts, "formats": {}}
    miou_torch: dict[str, float | None] = {}

    def judged(net: nn.Module, how: Protocol) -> float | None:
        assert source is not None
        scores = evaluate(net, source, "val", how, device="cpu", batch_size=1, limit=limit, boundary=False)
        return scores["miou"]

    with whole_folder(output) as folder, torch.no_grad():
        program, dynamic = _program(wrapped, size, say)
        graph = None
        if {"onnx", "int8"} & set(formats):
            say("writing ONNX")
            metadata = {k: json.dumps(v) for k, v in facts.items()}
            try:
                graph = onnx_bytes(program, metadata)
            except Exception as error:
                if not dynamic:
                    raise InputError(f"{facts['model']} has no ONNX form: {_first_line(error)}") from error
                say(f"no dynamic ONNX ({_first_line(error)}): fixed size {size[0]}x{size[1]}")
                program, dynamic = export_program(wrapped, _example(config, (1, *size))), False
                graph = onnx_bytes(program, metadata)
        how = protocol if dynamic else replace(protocol, mode="slide", crop_size=size, stride=None)
        for one in [f for f in FORMATS if f in formats]:
            file, started = folder / FORMATS[one], time.monotonic()
            if one == "pt2":
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.export.save(program, file)
                    loaded = torch.export.load(file).module()
                call = partial(_run_program, loaded)
            else:
                assert graph is not None
                if one == "onnx":
                    file.write_bytes(graph)
                else:
                    assert source is not None
                    say(f"int8: ranges from {calibration} pictures")
                    pictures = _prepared(source, calibration, protocol, mean, std, None if dynamic else size)
                    _quantise(graph, file, pictures, folder)
                call = partial(_run_session, onnx_session.session(file))
            stand_in = Exported(config, call)
            sizes = SIZES if dynamic else (size,)
            worst, agreement = _compare(model, stand_in, sizes, source, mean, std)
            if one != "int8" and (worst > TOLERANCE or agreement < AGREEMENT):
                raise InputError(
                    f"{FORMATS[one]} of {facts['model']} differs from the model: logits by {worst:.2g} of the largest, "
                    f"{100 * (1 - agreement):.2f}% of the labels; nothing is written"
                )
            entry: dict[str, Any] = {
                "file": FORMATS[one], "bytes": file.stat().st_size, "dynamic": dynamic,
                "size": None if dynamic else list(size), "logits": worst, "labels": agreement,
            }  # fmt: skip
            if source is not None:
                say(f"{FORMATS[one]}: mIoU on {limit or source.splits['val']} validation pictures")
                if how.mode not in miou_torch:
                    miou_torch[how.mode] = judged(model, how)
                entry |= {"miou": judged(stand_in, how), "miou_torch": miou_torch[how.mode]}
            result["formats"][one] = entry
            say(f"{FORMATS[one]}: checked, {time.monotonic() - started:.0f} s")
        write_json(folder / "export.json", result)
    return result


def _example(config: Any, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape[0], getattr(config, "in_channels", 3), *shape[1:], generator=generator)


def _program(wrapped: Logits, size: tuple[int, int], say: Callable[[str], object]) -> tuple[ExportedProgram, bool]:
    """Of any size where that is possible."""
    config = wrapped.model.config
    say("tracing")
    try:
        return export_program(wrapped, _example(config, EXAMPLE), dynamic=True), True
    except Exception as error:
        say(f"cannot be dynamic ({_first_line(error)}): fixed size {size[0]}x{size[1]}, one picture at a time")
    try:
        return export_program(wrapped, _example(config, (1, *size))), False
    except Exception as error:
        raise InputError(f"{type(wrapped.model).__name__} cannot be exported: {_first_line(error)}") from error


def _run_program(program: Callable[[Tensor], Tensor], x_BCHW: Tensor) -> Tensor:
    return program(x_BCHW)  # called as a function: an exported module has no modes


def _run_session(session: Any, x_BCHW: Tensor) -> Tensor:
    return onnx_session.run(session, [x_BCHW])[0]


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:200]}" if lines else type(cause).__name__


def _prepared(
    source: SegmentationSource, count: int, protocol: Protocol, mean: Any, std: Any, size: tuple[int, int] | None
) -> Iterator[Tensor]:
    """Training pictures as the model sees them, spread evenly over the split; (1, 3, h, w)."""
    split = "train" if source.splits.get("train") else "val"
    total = source.splits[split]
    for i in range(min(count, total)):
        pixels = to_pixels(source.read_image(split, i * total // min(count, total)), protocol.base_size)
        x = normalise(pixels[None], mean, std)
        if size is not None:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        yield x


def _compare(
    model: nn.Module, other: nn.Module, sizes: Sequence[tuple[int, int]], source: Any, mean: Any, std: Any
) -> tuple[float, float]:
    """Largest difference of the logits relative to the largest logit, and the share of equal labels, over pictures of
    the given sizes: of the data where there are any, drawn ones otherwise."""
    worst, equal, pixels = 0.0, 0, 0
    for i, (height, width) in enumerate(sizes):
        if source is not None:
            image = torch.from_numpy(source.read_image("val", i % source.splits["val"]).copy()).permute(2, 0, 1)[None]
            image = F.interpolate(image.float(), size=(height, width), mode="bilinear").round().to(torch.uint8)
        else:
            drawn, _ = draw_scene(np.random.default_rng(i), (height, width))
            image = torch.from_numpy(drawn.copy()).permute(2, 0, 1)[None]
        x = normalise(image, mean, std)
        ours, theirs = model(x).logits.float(), other(x).logits.float()
        if ours.shape != theirs.shape:
            return float("inf"), 0.0
        worst = max(worst, float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12)))
        same = labels_from_logits(ours, (height, width)) == labels_from_logits(theirs, (height, width))
        equal, pixels = equal + int(same.sum()), pixels + same.numel()
    return worst, equal / pixels


def _quantise(graph: bytes, file: Path, pictures: Iterator[Tensor], folder: Path) -> None:
    """Static int8 (QDQ) of convolutions and matrix products, weights by channel; the rest stays in float32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            x = next(pictures, None)
            return None if x is None else {"pixel_values": x.numpy()}

    raw, ready = folder / ".raw.onnx", folder / ".ready.onnx"
    raw.write_bytes(graph)
    logging.getLogger().setLevel(logging.ERROR)
    try:
        # Symbolic shapes are of no use here, and some operators have none.
        quant_pre_process(str(raw), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready), str(file), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
        )  # fmt: skip
        made = onnx.load(file)
        metadata = onnx.load_from_string(graph).metadata_props
        del made.metadata_props[:]  # the quantiser leaves notes of its own among ours
        made.metadata_props.extend(metadata)
        onnx.save(made, file)
    finally:
        raw.unlink(missing_ok=True)
        ready.unlink(missing_ok=True)


def format_export(result: dict[str, Any], output_dir: Path) -> str:
    """A line a file."""
    lines = []
    for entry in result["formats"].values():
        size = "any size" if entry["dynamic"] else "{}x{} only".format(*entry["size"])
        miou = ""
        if "miou" in entry:
            miou = f", mIoU {100 * (entry['miou'] or 0):.2f} (PyTorch {100 * (entry['miou_torch'] or 0):.2f})"
        lines.append(
            f"{output_dir / entry['file']}: {entry['bytes'] / 2**20:.1f} MiB, {size}, logits within "
            f"{entry['logits']:.1e}, {100 * entry['labels']:.2f}% equal labels{miou}"
        )
    return "\n".join(lines)
