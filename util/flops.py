"""Multiply-accumulates of any module, counted on a trace by fvcore; nothing that multiplies heavily goes uncounted.

Counted: convolutions, linear layers, matrix and attention products, and, as fvcore does, norms and resizing. Not
counted: what is one operation an element (activations, sums, pooling). Any other operator is reported by name and
fails the count unless asked not to.

For large inputs the trace is taken on the meta device, where tensors are shapes and nothing is computed. The counts are
the same.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from util.errors import InputError

LARGE = 2**18  # numbers in an input: a smaller one is computed as soon as its shapes are followed through Python
HEAVY = 2**44  # numbers in an input times parameters: worth the import of what follows shapes
Measured = TypeVar("Measured")
Handler = Callable[[list[Any], list[Any]], Counter[str]]


@dataclass
class Cost:
    """Of one forward pass.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates.
        by_operator: The same by operator: `conv`, `linear`, `matmul`, `attention`, and fvcore's `layer_norm`, ...
        by_part: The same by submodule.
        uncounted: Operators that nobody told us how to count, and how often they ran.
    """

    params: int
    macs: int
    by_operator: dict[str, int]
    by_part: dict[str, int]
    uncounted: dict[str, int]

    @property
    def attention(self) -> int:
        """MACs of products between activations: attention and other matrix products without weights."""
        return sum(self.by_operator.get(name, 0) for name in ("attention", "matmul"))


class UncountedError(RuntimeError):
    """A module ran an operator that the counter does not know."""


def _shape(value: Any) -> list[int]:
    return list(value.type().sizes() or [])


def _conv(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    weight, out, transposed = _shape(inputs[1]), _shape(outputs[0]), inputs[6].toIValue()
    # A transposed convolution meets each weight once an input position, a plain one once an output position.
    positions = math.prod(_shape(inputs[0])[2:]) if transposed else math.prod(out[2:])
    return Counter({"conv": out[0] * positions * math.prod(weight)})


def _conv_by_mode(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Padding given as a word ("same", "valid"); never transposed."""
    return Counter({"conv": math.prod(_shape(outputs[0])[2:]) * _shape(outputs[0])[0] * math.prod(_shape(inputs[1]))})


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"linear": math.prod(_shape(inputs[0])) * _shape(inputs[1])[0]})


def _addmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"linear": math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]})


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"matmul": math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _baddbmm(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"matmul": math.prod(_shape(outputs[0])) * _shape(inputs[1])[-1]})


def _einsum(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    equation = inputs[0].toIValue().replace(" ", "")
    operands = [_shape(v) for v in inputs[1].node().inputs()]
    if len(operands) == 1:
        return Counter()  # a permutation or a sum
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.split("->")[0].split(","), operands, strict=True):
        if "." in letters:
            raise UncountedError(f"einsum {equation!r}: write out the dimensions behind '...' to have it counted")
        for letter, size in zip(letters, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # one operand may have 1 there, and is broadcast
    return Counter({"matmul": math.prod(sizes.values())})  # two operands: every combination of indices meets once


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    *batch, n, d = _shape(inputs[0])
    m, value_d = _shape(inputs[1])[-2], _shape(inputs[2])[-1]
    return Counter({"attention": math.prod(batch) * n * m * (d + value_d)})


def _bicubic(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"upsample_bicubic2d": 16 * math.prod(_shape(outputs[0]))})  # fvcore: 4 for a bilinear sample


def _nothing(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter()


COUNTED: dict[str, Handler] = {
    "aten::_convolution": _conv,
    "aten::_convolution_mode": _conv_by_mode,
    "aten::linear": _linear,
    "aten::addmm": _addmm,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::baddbmm": _baddbmm,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::upsample_bicubic2d": _bicubic,
    "aten::_upsample_bicubic2d_aa": _bicubic,
}
# One operation an element or less. Norms and resizing are not here: fvcore counts those (5 an element for a LayerNorm,
# 4 for a bilinear sample, ...), and so do the published figures that were made with it.
FREE = """
    abs adaptive_avg_pool1d adaptive_max_pool2d add add_ alias amax amin arange argmax avg_pool1d avg_pool2d bernoulli
    bernoulli_ cat ceil chunk clamp clamp_min clone constant_pad_nd contiguous copy_ cos cumsum detach div div_
    dropout dropout_ elu empty empty_like eq erf exp expand expand_as feature_dropout feature_dropout_ fill_ flatten
    flip floor floor_divide full full_like gather ge gelu gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh
    hardtanh_ im2col index index_select le leaky_relu lerp linalg_vector_norm linspace log log_softmax lt masked_fill
    max max_pool2d maximum mean meshgrid min minimum mish mul mul_ ne neg new_empty new_zeros norm ones ones_like pad
    permute pixel_shuffle pixel_unshuffle pow reciprocal reflection_pad2d relu relu_ remainder repeat
    repeat_interleave replication_pad2d reshape reshape_as roll rsqrt rsub select sigmoid sigmoid_ silu silu_ sin
    slice softmax softplus split split_with_sizes sqrt squeeze stack sub sum swapaxes t tanh to topk transpose tril
    triu type_as unbind unflatten unfold unsqueeze var var_mean view view_as where zeros zeros_like
""".split()  # noqa: SIM905  (three screens as a list)


class _Plain(nn.Module):
    """Returns tensors where the module returns one of transformers' output classes, which cannot be traced."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        out = self.module(x)
        if isinstance(out, Tensor | tuple):
            return out
        if isinstance(out, list):
            return tuple(out)
        logits = getattr(out, "logits", None)
        return logits if logits is not None else tuple(out.feature_maps)


@contextmanager
def _traceable_convolutions() -> Iterator[None]:
    """Inside the block convolutions can be traced on the meta device.

    torch's own rule for their shape fails there: under the tracer the sizes that it computes with are tensors.
    """

    def recorded(*arguments: Any) -> Tensor:
        return torch.ops.aten._convolution.default(*arguments, False, False, True, True)  # what the tracer writes down

    def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        result = x.new_empty(_shape_of_convolution(x, weight, *settings[:6]))
        channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        return result.to(memory_format=torch.channels_last) if channels_last else result

    with torch.library._scoped_library("aten", "IMPL", "Meta") as library:
        library.impl("convolution", recorded, allow_override=True)
        library.impl("_convolution", convolution)
        yield


def _shape_of_convolution(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> list[int]:
    (batch, _, *sizes), (first, second, *kernel) = ([int(n) for n in t.shape] for t in (x, weight))
    per_axis = [v * len(sizes) if len(v) == 1 else v for v in (stride, padding, dilation, output_padding)]
    result = [batch, second * groups if transposed else first]
    for n, k, step, pad, spread, more in zip(sizes, kernel, *per_axis, strict=True):
        inner = spread * (k - 1) - 2 * pad
        result.append((n - 1) * step + inner + 1 + more if transposed else (n - inner - 1) // step + 1)
    return result


_Counts = tuple[dict[str, float], dict[str, float], dict[str, int]]  # by module, by operator, uncounted


def _counts(
    module: nn.Module, device: torch.device, input_shape: Sequence[int], warm_up: Sequence[int] | None
) -> _Counts:
    x = torch.zeros(tuple(input_shape), device=device, dtype=next(module.parameters(), torch.zeros(())).dtype)
    first_x = x if warm_up is None else x.new_zeros(tuple(warm_up))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer remarks on every Python number
        module(first_x)
        analysis = FlopCountAnalysis(_Plain(module), x)
        analysis.set_op_handle(**{f"aten::{name}": _nothing for name in FREE})
        analysis.set_op_handle(**COUNTED)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        by_operator = analysis.by_module_and_operator()
        by_module = {k: sum(v.values()) for k, v in by_operator.items()}
        return by_module, dict(by_operator[""]), {k: int(v) for k, v in analysis.unsupported_ops().items()}


def _sooner_followed(module: nn.Module, numbers: int) -> bool:
    """Whether following the shapes of so many numbers takes less time than computing with them.

    The rules for shapes are in torch's compiler, whose import takes longer than a light model, and which transformers
    brings anyway.
    """
    imported = "torch._dynamo" in sys.modules
    return numbers >= LARGE and (imported or numbers * sum(p.numel() for p in module.parameters()) >= HEAVY)


def _without_values(module: nn.Module) -> nn.Module:
    """A copy on the meta device, in evaluation mode."""
    tensors = chain(module.parameters(), module.buffers())
    return copy.deepcopy(module, {id(t): t.detach().to("meta") for t in tensors}).eval()


def count(
    module: nn.Module,
    input_shape: Sequence[int] = (1, 3, 512, 512),
    *,
    warm_up: Sequence[int] | None = None,
    parts: Sequence[str] = (),
    strict: bool = True,
) -> Cost:
    """Count one forward pass in evaluation mode.

    The module runs once before it is traced, so that what it computes once for a given set of weights (a folded
    layer, say) and then keeps is not counted: at `warm_up`, where it takes any size, which may be small.

    Args:
        module: Takes a tensor of its parameters' type; its state and mode are left as they were. It may be on the meta
            device.
        input_shape: (B, C, H, W).
        warm_up: Shape of that first run, `input_shape` by default.
        parts: Names of submodules to split the count by; what lies outside them is `rest`.
        strict: Raise on uncounted operators.

    Raises:
        UncountedError: An operator is neither counted nor known to be cheap.
    """
    counted: _Counts | None = None
    device = next(chain(module.parameters(), module.buffers()), torch.zeros(())).device
    if device.type == "meta" or _sooner_followed(module, math.prod(input_shape)):
        # Whatever it is that a module does with values, or an operator without a form for shapes: it is run for real.
        with suppress(Exception), _traceable_convolutions():
            counted = _counts(_without_values(module), torch.device("meta"), input_shape, warm_up)
    if counted is None:
        modes = {m: m.training for m in module.modules()}
        try:
            counted = _counts(module.eval(), device, input_shape, warm_up)
        finally:
            for m, mode in modes.items():
                m.training = mode
    by_module, by_operator, uncounted = counted
    if strict and uncounted:
        raise UncountedError(
            f"operators that are not counted: {', '.join(f'{k} ({v} times)' for k, v in uncounted.items())}; give them "
            "a handler in util/flops.py"
        )
    total = round(by_module[""])
    by_part = {name: round(by_module.get(f"module.{name}", 0)) for name in parts}
    if parts and total != sum(by_part.values()):
        by_part["rest"] = total - sum(by_part.values())
    params = sum(p.numel() for p in module.parameters())
    return Cost(params, total, {k: round(v) for k, v in by_operator.items()}, by_part, uncounted)


def outlined(measure: Callable[[Any], Measured], create: Callable[[], Any]) -> Measured:
    """What `measure` counts of a model that is made for this alone: on the meta device, in no time and memory.

    Where that fails (a component looks at values), of the model with its weights.
    """
    try:
        with torch.device("meta"):
            model = create()
        return measure(model)
    except (InputError, UncountedError):
        raise
    except Exception:  # whatever the component does, or the library that built the encoder
        return measure(create())
