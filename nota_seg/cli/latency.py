"""`nota-seg latency`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nota_seg.cli.common import Device, Set, parse_size, print_json, quiet_libraries, torch_device
from util.errors import InputError


def latency(
    model: Annotated[str | None, typer.Option(help="Model name, e.g. segformer-b0.")] = None,
    pretrain: Annotated[str | None, typer.Option(help="Or a run's folder, or its best/ or last/.")] = None,
    size: Annotated[str, typer.Option(help="Input in pixels: 512 or HxW.")] = "512",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 1,
    runtime: Annotated[str, typer.Option(help="eager, compile, onnx, tensorrt; with commas.")] = "eager",
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16; of eager and compile.")] = "no",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor.  [default: torch's]")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each runtime.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=3, help="In which the runtimes take turns.")] = 20,
    num_classes: Annotated[int, typer.Option(min=1, help="Of a model given by name.")] = 150,
    set_: Set = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Write here, or `-` for stdout.  [default: latency-CARD.json in a run's folder]"),
    ] = None,
    device: Device = None,
) -> None:
    """Measure from picture to label map: p50 with its interval, p90, p99, memory, encoder, decoder and upsampling.

    Example: `nota-seg latency --model segformer-b0 --size 512x1024 --runtime eager,compile,onnx`
    """
    if (model is None) == (pretrain is None):
        raise InputError("give --model NAME or --pretrain FOLDER, one of them")
    pixels = parse_size(size, "--size")
    torch_dev = torch_device(device)
    from nota_seg.latency import format_latency, run_file, save
    from nota_seg.latency import latency as run
    from nota_seg.models.loading import load_model
    from nota_seg.models.zoo import create_from_settings
    from util.progress import Progress

    quiet_libraries()
    assert pixels is not None
    if model is not None:
        net = create_from_settings(model, num_labels=num_classes, sets=set_ or []).to(torch_dev)
        name = model
    else:
        net, _ = load_model(str(pretrain), torch_dev)
        name = getattr(net.config, "zoo_name", None) or type(net).__name__
    runtimes = [r.strip() for r in runtime.split(",") if r.strip()]
    with Progress(rounds, "measuring") as progress:
        result = run(
            net, name=name, size=pixels, batch_size=batch_size, runtimes=runtimes, device=torch_dev,
            precision=precision, threads=threads, rounds=rounds, seconds=seconds, progress=progress,
        )  # fmt: skip
    file = json
    if file is None and pretrain is not None:
        file = run_file(pretrain, result["card"])
    if file is not None and str(file) != "-":
        save(result, file)
    print_json(result) if str(json) == "-" else print(format_latency(result))
