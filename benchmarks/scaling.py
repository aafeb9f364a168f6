"""Cost against the picture's area for every registered mixer and decoder: multiply-accumulates and seconds.

    python -m benchmarks.scaling --json scaling.json --plot scaling.png

A mixer stands where SegFormer-B0 has its second stage (64 channels at 1/8), a decoder on the maps of SegFormer-B0.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import machine, set_threads
from nota_seg.models.registry import DECODERS, MIXERS
from nota_seg.models.zoo import create_config
from util.errors import InputError
from util.files import whole_file, write_json
from util.flops import count

SIZES = [(256, 256), (512, 512), (512, 1024), (1024, 1024), (1024, 2048)]  # height, width of the picture
CLASSES = 150
LIMIT = 5.0  # seconds: a larger picture is left out where quadratic growth would pass it


class OnMaps(nn.Module):
    """A decoder on the encoder's maps of a picture: here every channel is the picture's first."""

    def __init__(self, decoder: nn.Module, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.decoder, self.channels, self.strides = decoder, channels, strides

    def forward(self, picture: Tensor) -> Tensor:
        maps = [
            picture[:, :1, ::s, ::s].expand(-1, c, -1, -1).contiguous(memory_format=torch.channels_last)
            for c, s in zip(self.channels, self.strides, strict=True)
        ]
        return self.decoder(maps)


def mixer(name: str) -> tuple[nn.Module, Callable[[int, int], tuple[int, ...]]]:
    """The mixer, and the shape of its input for a picture's size."""
    stage = create_config("segformer-b0", mixer=name).stages[1]
    module = MIXERS.build(stage["mixer"], dim=stage["dim"], heads=stage["heads"])
    return module, lambda H, W: (1, H // 8, W // 8, stage["dim"])


def decoder(name: str) -> tuple[nn.Module, Callable[[int, int], tuple[int, ...]]]:
    config = create_config("segformer-b0", decoder=name)
    module = DECODERS.build(config.decoder, channels=config.channels, strides=config.strides, num_labels=CLASSES)
    return OnMaps(module, config.channels, config.strides), lambda H, W: (1, 3, H, W)


def seconds(module: nn.Module, shape: tuple[int, ...], repeats: int) -> float:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            module(x)
            times.append(time.perf_counter() - start)
    return median(times[1:])


def exponent(values: list[float]) -> float:
    """p of the last two sizes, where cost grows as area to the power p."""
    areas = [H * W for H, W in SIZES[: len(values)]]
    return math.log(values[-1] / values[-2]) / math.log(areas[-1] / areas[-2]) if values[-2] > 0 else 0.0


def measure(repeats: int) -> dict[str, list[dict[str, Any]]]:
    """For both kinds one row a component; a component that does not fit SegFormer-B0 says why instead."""
    result: dict[str, list[dict[str, Any]]] = {"mixers": [], "decoders": []}
    for kind, registry, build in (("mixers", MIXERS, mixer), ("decoders", DECODERS, decoder)):
        for name in registry:
            print(f"{kind} {name} ...", file=sys.stderr, flush=True)
            try:
                module, shape = build(name)
            except InputError as error:
                result[kind].append({"name": name, "error": str(error)})
                continue
            module.eval()
            macs: list[int] = []
            times: list[float] = []
            for i, (H, W) in enumerate(SIZES):
                if i > 1 and times[-1] * (H * W / math.prod(SIZES[i - 1])) ** 2 > LIMIT:
                    break
                macs.append(count(module, shape(H, W)).macs)
                times.append(seconds(module, shape(H, W), repeats))
            result[kind].append(
                {
                    "name": name,
                    "macs": macs,
                    "seconds": times,
                    "macs_exponent": exponent([float(m) for m in macs]),
                    "seconds_exponent": exponent(times),
                }
            )
    return result


def plot(result: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Both kinds, both costs, on logarithmic axes: a slope of one is a cost in proportion to the area."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    areas = [H * W / 1e6 for H, W in SIZES]
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for row, (kind, components) in zip(axes, result.items(), strict=True):
        for axis, what, unit, scale in zip(row, ("macs", "seconds"), ("GMACs", "ms"), (1e-9, 1e3), strict=True):
            for component in components:
                if max(component.get(what, [0])) > 0:
                    values = [scale * v for v in component[what]]
                    shown = areas[: len(values)]
                    label = f"{component['name']} (area^{component[what + '_exponent']:.2f})"
                    axis.loglog(shown, values, marker="o", markersize=3, label=label)
            axis.set(xlabel="megapixels", ylabel=unit, title=f"{kind}: {unit} of one")
            axis.grid(True, which="both", alpha=0.3)
            axis.legend(fontsize=7)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture: .png, .svg or .pdf")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    set_threads(options.threads)
    torch.manual_seed(0)
    result = measure(options.repeats)
    sizes = [f"{H}x{W}" for H, W in SIZES]
    for kind, components in result.items():
        print(f"{kind:12} {' '.join(f'{s:>18}' for s in sizes)}   growth (MACs, time)")
        for c in components:
            if "error" in c:
                print(f"{c['name']:12} {c['error']}")
                continue
            cells = [f"{m / 1e9:7.2f} G {1e3 * t:6.0f} ms" for m, t in zip(c["macs"], c["seconds"], strict=True)]
            growth = f"area^{c['macs_exponent']:.2f}, area^{c['seconds_exponent']:.2f}"
            print(f"{c['name']:12} {' '.join(f'{cell:>18}' for cell in cells)}   {growth}")
    if options.json is not None:
        write_json(options.json, {"machine": machine(), "sizes": sizes, **result})
    if options.plot is not None:
        plot(result, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
