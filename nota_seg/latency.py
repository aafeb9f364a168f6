"""How long a model takes from a normalised picture on the device to its label map there, by part and by runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nota_seg.export import export_program, onnx_bytes
from nota_seg.inference import PRECISIONS
from nota_seg.models.labels import labels_from_logits
from nota_seg.models.modeling import NotaSegForSemanticSegmentation
from util import onnx_session
from util.errors import InputError, did_you_mean
from util.files import write_json
from util.latency import Chain, device_card, format_card, measure, peak_memory, resident_growth, threads_of
from util.run_folder import describe_environment

RUNTIMES = ("eager", "compile", "onnx", "tensorrt")
SETTINGS = ("model", "runtime", "size", "batch_size", "precision")  # what makes two measurements two


class _Encoder(nn.Module):
    """The encoder with maps as the decoder takes them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.encoder

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        return [x_BHWC.permute(0, 3, 1, 2) for x_BHWC in self.encoder(pixel_values)]


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.decoder(list(features))


class _Network(nn.Module):
    """A model of another library, whose parts nobody knows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values).logits


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that run one after the other; of other libraries' models all is one part."""
    if type(model) is NotaSegForSemanticSegmentation:
        return {"encoder": _Encoder(model), "decoder": _Decoder(model)}
    return {"network": _Network(model)}


def latency(
    model: nn.Module,
    *,
    name: str,
    size: tuple[int, int] = (512, 512),
    batch_size: int = 1,
    runtimes: Sequence[str] = ("eager",),
    device: torch.device | str = "cpu",
    precision: str = "no",
    threads: int | None = None,
    rounds: int = 20,
    seconds: float = 10.0,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Measure a segmentation model.

    Args:
        model: On `device`; it is put into evaluation mode.
        name: Of the model, for the result.
        size: (height, width) of the input and of the label map, in pixels.
        batch_size: Pictures at once.
        runtimes: Of `RUNTIMES`; they are measured in turns.
        device: Where to compute.
        precision: no, bf16 or fp16, by autocast; ONNX Runtime computes in float32.
        threads: Of the processor; as many as torch takes by itself by default.
        rounds: The interval of the median stands on them, 3 at least.
        seconds: Of each runtime, all rounds together.
        progress: Called with 1 after every round.

    Returns:
        `card`, with its `id`, and `measurements`, one a runtime: the settings, `p50`, `p90`, `p99`, `mean` and
        `p50_interval` in milliseconds, `throughput` in pictures a second, `peak_memory`, `parts`, `conditions`.

    Raises:
        InputError: An unknown or missing runtime, or one that cannot run this model.
    """
    for runtime in runtimes:
        if runtime not in RUNTIMES:
            raise InputError(f"unknown runtime {runtime!r}: {did_you_mean(runtime, RUNTIMES)}")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: {did_you_mean(precision, PRECISIONS)}")
    if precision != "no" and set(runtimes) & {"onnx", "tensorrt"}:
        raise InputError(f"precision {precision} is for eager and compile: ONNX Runtime computes in float32 here")
    device = torch.device(device)
    model.eval()
    channels = getattr(model.config, "in_channels", 3)
    x = torch.randn(batch_size, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with threads_of(threads), torch.inference_mode():
        card = device_card(device.type)
        chains: dict[str, Chain] = {}
        memory: dict[str, dict[str, Any]] = {}
        for runtime in dict.fromkeys(runtimes):
            try:
                chains[runtime], memory[runtime] = _prepare(model, runtime, x, precision)
            except InputError:
                raise
            except Exception as error:
                text = str(error).strip().splitlines()
                raise InputError(
                    f"runtime {runtime} cannot run {name}: {type(error).__name__}: {text[0] if text else ''}; "
                    "leave it out of --runtime"
                ) from error
        timings, conditions = measure(
            chains, dict.fromkeys(chains, x), rounds=rounds, seconds=seconds, progress=progress
        )
    environment = describe_environment()
    common = {
        "model": name,
        "params": sum(p.numel() for p in model.parameters()),
        "num_labels": int(model.config.num_labels),  # type: ignore[union-attr, arg-type]
        "size": list(size),
        "batch_size": batch_size,
        "precision": precision,
    }
    measurements = []
    for runtime, timing in timings.items():
        numbers = timing.summary(conditions.get("other_load", 0.0) if device.type == "cpu" else 0.0)
        throughput = round(1000 * batch_size / numbers["p50"], 3)
        measurements.append(
            {**common, "runtime": runtime, **numbers, "throughput": throughput, "peak_memory": memory[runtime],
             "conditions": conditions, "revision": environment["git"]}
        )  # fmt: skip
    return {"card": card, "measurements": measurements}


def _prepare(model: nn.Module, runtime: str, x: Tensor, precision: str) -> tuple[Chain, dict[str, Any]]:
    """What is timed, after one run of it, and the peak memory of a run."""
    size = tuple(x.shape[2:])
    upsampling = ("upsampling", lambda logits: labels_from_logits(logits, size))
    parts = parts_of(model)
    if runtime in ("onnx", "tensorrt"):
        onnx_session.require(f"--runtime {runtime}")
        device, example = x.device.type, x.cpu()
        steps: list[tuple[str, Callable[[Any], Any]]] = []
        for part, module in parts.items():
            # Exported at this very size: what a device is given that sees one size only.
            graph = onnx_bytes(export_program(module.cpu(), example))
            session = onnx_session.session(graph, device, tensorrt=runtime == "tensorrt")
            steps.append((part, partial(_run, session, device)))
            example = module(example)
        model.to(x.device)
        chain = Chain([*steps, upsampling], device)
        if x.device.type == "cuda":
            chain(x)
            return chain, peak_memory(chain, x)
        # Its arena grows in the first run and stays: the peak is the growth.
        return chain, {"bytes": resident_growth(lambda: chain(x)), "method": "growth of the process"}
    functions: list[tuple[str, Callable[[Any], Any]]] = []
    for part, module in parts.items():
        # Compiled for this size; the parts one by one, so that each can be timed.
        call = torch.compile(module, dynamic=False) if runtime == "compile" else module
        functions.append((part, partial(_autocast, call, x.device.type, precision)))
    chain = Chain([*functions, upsampling], x.device.type, asynchronous=x.device.type == "cuda")
    chain(x)  # compiles
    return chain, peak_memory(chain, x)


def _run(session: Any, device: str, x: Any) -> Any:
    found = onnx_session.run(session, x if isinstance(x, list) else [x], device)
    return found if len(found) > 1 else found[0]


def _autocast(call: Callable[[Any], Any], device: str, precision: str, x: Any) -> Any:
    dtype = PRECISIONS[precision]
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        return call(x)


def save(result: dict[str, Any], path: str | Path) -> None:
    """Write a result; measurements of other settings that the file already holds stay, those of the same are replaced.

    Raises:
        InputError: The file holds numbers of another card.
    """
    from util.coco import read_json

    path = Path(path)
    kept: list[dict[str, Any]] = []
    if path.exists():
        old = read_json(path)
        if not isinstance(old, dict) or "card" not in old or not isinstance(old.get("measurements"), list):
            raise InputError(f"{path} exists and holds no latencies: name another file")
        if old["card"]["id"] != result["card"]["id"]:
            raise InputError(
                f"{path} holds latencies of {old['card']['id']}, these are of {result['card']['id']}, and numbers of "
                "different cards are not mixed: name another file"
            )
        new = [tuple(map(str, (m[k] for k in SETTINGS))) for m in result["measurements"]]
        kept = [m for m in old["measurements"] if tuple(map(str, (m.get(k) for k in SETTINGS))) not in new]
    write_json(path, {"card": result["card"], "measurements": [*kept, *result["measurements"]]})


def run_file(pretrain: str | Path, card: dict[str, Any]) -> Path | None:
    """Where a run's latencies on a card belong: `latency-<card id>.json` in its folder; None where it is no run."""
    path = Path(pretrain)
    for folder in (path, path.parent if path.name in ("best", "last") else path):
        if (folder / "run.json").is_file():
            return folder / f"latency-{card['id']}.json"
    return None


def format_latency(result: dict[str, Any]) -> str:
    """For people: the card, a line a runtime, its parts below it."""
    lines = [f"card {result['card']['id']}: {format_card(result['card'])}"]
    for m in result["measurements"]:
        low, high = m["p50_interval"]
        lines += [
            "",
            f"{m['model']}, {m['runtime']}, {m['batch_size']} x {m['size'][0]}x{m['size'][1]}"
            + (f", {m['precision']}" if m["precision"] != "no" else ""),
            f"  p50 {m['p50']:9.2f} ms   (a second measurement: {low:.2f} to {high:.2f}, 95%)",
            f"  p90 {m['p90']:9.2f} ms   p99 {m['p99']:.2f} ms, {m['runs']} runs in {m['rounds']} rounds",
            f"  {m['throughput']:.2f} pictures a second"
            + (f", peak memory {m['peak_memory']['bytes'] / 2**20:.1f} MiB" if m["peak_memory"]["bytes"] else ""),
        ]
        lines += [f"    {k:12} {v['p50']:9.2f} ms {100 * v['share']:5.1f}%" for k, v in m["parts"].items()]
    conditions = result["measurements"][0]["conditions"]
    if conditions["throttled"]:
        lines += ["", f"the clocks were not steady: {'; '.join(conditions['reasons'])}; measure again"]
    if conditions.get("other_load", 0) > 0.1:
        lines += ["", f"other programs took {100 * conditions['other_load']:.0f}% of the machine meanwhile"]
    return "\n".join(lines)
