"""A new component's three places: its file, its line in the registry's package, its test.

What is written works at once, as the simplest component of its kind: the contract tests pass before the first edit.
"""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from pathlib import Path

import nota_seg
from nota_seg.models.architecture import PER_STAGE
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean
from util.files import write_text

REGISTRIES = {**PER_STAGE, "decoder": DECODERS}
HEAD = '''"""{title} (paper, arXiv id, section or figure). What differs from the published module, if anything does."""

from __future__ import annotations

'''
MIXER = '''from torch import Tensor, nn

from nota_seg.models.registry import MIXERS


@MIXERS.register("{name}")
class {title}(nn.Module):
    """A 3x3 depth-wise convolution, until there is something better.

    Args:
        dim: Channels.
        heads: Unused.
        kernel: Side of the convolution, odd.
    """

    def __init__(self, dim: int, heads: int, kernel: int = 3) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.dwconv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
'''
FEEDFORWARD = '''import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.registry import FEEDFORWARDS


@FEEDFORWARDS.register("{name}")
class {title}(nn.Module):
    """Linear, ReLU, Linear, until there is something better.

    Args:
        dim: Channels in and out.
        hidden: Channels between the layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x_BHWC)))
'''
SKIP = '''from collections.abc import Callable

from torch import Tensor, nn

from nota_seg.models.common import DropPath
from nota_seg.models.registry import SKIPS


@SKIPS.register("{name}")
class {title}(nn.Module):
    """x + DropPath(branch(LayerNorm(x))), until there is something better.

    Args:
        dim: Channels.
        drop_path: Probability of dropping the branch for a whole sample.
        eps: Of the norm.
    """

    def __init__(self, dim: int, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BHWC: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x_BHWC + self.drop_path(branch(self.norm(x_BHWC)))
'''
STEM = '''from torch import Tensor, nn

from nota_seg.models.registry import STEMS


@STEMS.register("{name}")
class {title}(nn.Module):
    """One strided convolution that overlaps by a pixel, then LayerNorm, until there is something better.

    Args:
        in_channels: Channels in.
        dim: Channels out.
        stride: Of the convolution.
    """

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, stride + 1, stride=stride, padding=(stride + 1) // 2)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.norm(self.proj(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
'''
DECODER = '''import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.registry import DECODERS


@DECODERS.register("{name}")
class {title}(nn.Module):
    """Each stage to `dim` channels, all summed at the finest stage's size, until there is something better.

    Args:
        channels: Channels of each stage, finest first.
        strides: Stride of each stage.
        num_labels: Classes.
        dim: Channels of the sum.
    """

    def __init__(self, channels: list[int], strides: list[int], num_labels: int, dim: int = 128) -> None:
        super().__init__()
        self.stride = strides[0]
        self.laterals = nn.ModuleList(nn.Conv2d(c, dim, kernel_size=1) for c in channels)
        self.classifier = nn.Conv2d(dim, num_labels, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        total = maps[0]
        for x in maps[1:]:
            total = total + F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.classifier(F.relu(total))
'''
TEST_HEAD = '''"""{title} does what its paper says. Sizes, gradients, saving, export, cost: the contract test."""

from __future__ import annotations

import torch

from nota_seg.models.registry import {registry}


'''
TESTS = {
    "mixer": """def test_a_kernel_of_a_single_one_changes_nothing() -> None:
    mixer = MIXERS.build("{name}", dim=4, heads=1)
    with torch.no_grad():
        mixer.dwconv.weight.zero_()[:, :, 1, 1] = 1
        mixer.dwconv.bias.zero_()
    x = torch.randn(2, 5, 7, 4)
    torch.testing.assert_close(mixer(x), x)
""",
    "feedforward": """def test_against_the_formula() -> None:
    feedforward = FEEDFORWARDS.build("{name}", dim=4, hidden=8)
    x = torch.randn(2, 5, 7, 4)
    hidden = (x @ feedforward.fc1.weight.T + feedforward.fc1.bias).clamp(min=0)
    torch.testing.assert_close(feedforward(x), hidden @ feedforward.fc2.weight.T + feedforward.fc2.bias)
""",
    "skip": """def test_a_branch_of_zeros_changes_nothing() -> None:
    skip = SKIPS.build("{name}", dim=4, drop_path=0.0, eps=1e-6)
    x = torch.randn(2, 5, 7, 4)
    torch.testing.assert_close(skip(x, torch.zeros_like), x)
    torch.testing.assert_close(skip(x, lambda normed: normed) - x, torch.nn.functional.layer_norm(x, (4,), eps=1e-6))
""",
    "stem": """def test_size_and_norm() -> None:
    x = STEMS.build("{name}", in_channels=3, dim=8, stride=4)(torch.randn(2, 32, 64, 3))
    assert x.shape[0] == 2 and x.shape[3] == 8
    torch.testing.assert_close(x.mean(dim=3), torch.zeros(x.shape[:3]), atol=1e-5, rtol=0)
""",
    "decoder": """def test_coarse_stages_reach_the_finest() -> None:
    decoder = DECODERS.build("{name}", channels=[4, 8], strides=[4, 8], num_labels=3)
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)
    logits = decoder([fine, coarse])
    assert logits.shape == (1, 3, 8, 8)
    assert not torch.allclose(logits, decoder([fine, coarse + 1]))
""",
}
BODIES = {"mixer": MIXER, "feedforward": FEEDFORWARD, "skip": SKIP, "stem": STEM, "decoder": DECODER}


@dataclass(frozen=True)
class Scaffold:
    """What was written: the component, the package that imports it, its test."""

    component: Path
    package: Path
    test: Path


def scaffold(kind: str, name: str, root: str | Path | None = None) -> Scaffold:
    """Write a new component, its import line and its test; nothing that is there is overwritten.

    Args:
        kind: mixer, feedforward, skip, stem or decoder.
        name: As in model names: a Python identifier in lower case.
        root: The checkout; the one that this package runs from by default.

    Raises:
        InputError: Unknown kind, a name that is taken or cannot be one, files in the way, no checkout.
    """
    if kind not in REGISTRIES:
        raise InputError(f"unknown kind of component {kind!r}: {did_you_mean(kind, REGISTRIES)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise InputError(f"{name!r} is no name for a {kind}: lower-case letters, digits and '_', as in 'dest_attn'")
    taken = next((k for k, registry in REGISTRIES.items() if name in registry), None)
    if taken is not None:
        raise InputError(f"{name!r} is a {taken} already: model names would mean two things; choose another name")
    top = Path(nota_seg.__file__).resolve().parents[1] if root is None else Path(root)
    folder = f"{kind}s"
    package = top / "nota_seg" / "models" / folder / "__init__.py"
    made = Scaffold(package.with_name(f"{name}.py"), package, top / "tests" / "models" / folder / f"test_{name}.py")
    if not package.is_file() or not (top / "tests").is_dir():
        raise InputError(f"{top} is no checkout of nota-seg (no {package.relative_to(top)} or tests/): clone it")
    for path in (made.component, made.test):
        if path.exists():
            raise InputError(f"{path} is there already: move it away, or choose another name than {name!r}")
    words = {"name": name, "title": "".join(w.capitalize() for w in name.split("_"))}
    registry = f"{kind.upper()}S"
    lines = _with_import(package.read_text(encoding="utf-8"), name, package)
    made.test.parent.mkdir(exist_ok=True)
    write_text(made.component, (HEAD + BODIES[kind]).format(**words))
    write_text(made.test, (TEST_HEAD + TESTS[kind]).format(**words, registry=registry))
    write_text(package, lines)  # last: until now nothing imports what was written
    return made


def _with_import(text: str, name: str, package: Path) -> str:
    """The package's text with one more line in its import, in alphabetical order."""
    match = re.search(r"(from nota_seg\.models\.\w+ import \(\n)((?:    \w+,  # noqa: F401\n)+)(\))", text)
    if match is None:
        raise InputError(f"{package} has no list of imports to add {name!r} to: restore it")
    lines = sorted([*match[2].splitlines(keepends=True), f"    {name},  # noqa: F401\n"])
    return text[: match.start(2)] + "".join(lines) + text[match.end(2) :]
