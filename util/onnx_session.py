"""ONNX Runtime: sessions on the device that is asked for, which take and give torch's tensors where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.errors import InputError


def require(verb: str) -> Any:
    """onnxruntime, or one line that says how to get what ONNX needs."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{verb} needs {error.name}: pip install 'nota-seg[onnx]'") from None
    return onnxruntime


def providers(device: str, *, tensorrt: bool = False) -> list[str]:
    """Execution providers for a device.

    Raises:
        InputError: The onnxruntime that is installed has none for it.
    """
    wanted = "TensorrtExecutionProvider" if tensorrt else "CUDAExecutionProvider"
    if device == "cpu" and not tensorrt:
        return ["CPUExecutionProvider"]
    found = require("this runtime").get_available_providers()
    if wanted not in found or device == "cpu":
        what = "TensorRT" if tensorrt else "GPU"
        raise InputError(
            f"no {what} for ONNX Runtime here (device {device}, providers {', '.join(found)}): install onnxruntime-gpu"
            " with its libraries, or leave this runtime out"
        )
    return [*dict.fromkeys([wanted, "CUDAExecutionProvider"]), "CPUExecutionProvider"]


def session(graph: bytes | str | Path, device: str = "cpu", *, tensorrt: bool = False) -> Any:
    """A session with as many threads as torch has."""
    runtime = require("ONNX Runtime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what fails is raised, and said in our words
    source = graph if isinstance(graph, bytes) else str(graph)
    return runtime.InferenceSession(source, options, providers=providers(device, tensorrt=tensorrt))


def run(one: Any, inputs: Sequence[Tensor], device: str = "cpu") -> list[Tensor]:
    """Run a session on tensors that lie on its device; the results lie there too."""
    if device == "cpu":
        feed = {i.name: x.contiguous().numpy() for i, x in zip(one.get_inputs(), inputs, strict=True)}
        return [torch.from_numpy(array) for array in one.run(None, feed)]
    binding = one.io_binding()
    kept = [x.float().contiguous() for x in inputs]
    torch.cuda.synchronize()
    for i, x in zip(one.get_inputs(), kept, strict=True):
        binding.bind_input(i.name, "cuda", 0, np.float32, tuple(x.shape), x.data_ptr())
    results = []
    for output in one.get_outputs():
        if not all(isinstance(n, int) for n in output.shape):
            raise InputError("a graph of unknown output sizes runs on the CPU here: export it at one size")
        results.append(torch.empty(output.shape, device="cuda"))
        binding.bind_output(output.name, "cuda", 0, np.float32, output.shape, results[-1].data_ptr())
    one.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return results
