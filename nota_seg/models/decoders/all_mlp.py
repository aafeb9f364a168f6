"""SegFormer's all-MLP decoder (arXiv 2105.15203, section 3.2), computed at each stage's own resolution.

The textbook order is: a Linear per stage, upsample all to 1/4, concatenate, 1x1 fuse convolution. Both layers are
linear and act on channels, bilinear resizing acts on positions, so they commute: fuse(concat(up(linear_i(x_i)))) =
sum_i up(W_i x_i + b_i) with W_i = fuse_i @ linear_i. Most of the head's cost was the fuse convolution at 1/4; here each
stage is projected before it is upsampled. Parameters keep the published form, logits agree up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.decoders.tiled import classify
from nota_seg.models.fuse import fold
from nota_seg.models.layers import Linear, eager_on_cpu, linear, untouched
from nota_seg.models.registry import DECODERS


@DECODERS.register("mlp")
class AllMLP(nn.Module):
    """Per stage a Linear to `dim`; fused, normalised and classified at the first stage's resolution.

    Args:
        channels: Channels of each stage, finest first.
        strides: Stride of each stage.
        num_labels: Classes K.
        dim: Channels D of the decoder.
        dropout: Before the classifier, whole channels at a time.
        textbook: Compute in the order of the paper (for comparison; same parameters, equal logits).
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_labels: int,
        dim: int = 256,
        dropout: float = 0.1,
        textbook: bool = False,
    ) -> None:
        super().__init__()
        self.stride = strides[0]
        self.textbook = textbook
        self.linears = nn.ModuleList(Linear(c, dim) for c in channels)
        self.fuse = nn.Conv2d(len(channels) * dim, dim, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(dim, num_labels, kernel_size=1)
        self._folded: tuple[tuple, list[tuple[Tensor, Tensor]]] | None = None

    def forward(self, features: list[Tensor]) -> Tensor:
        last = (self.norm, self.dropout, self.classifier)
        if not self.textbook and eager_on_cpu(features[0]) and untouched(*self.linears, self.fuse, *last):
            return self._by_tiles(features)
        fused_BDHW = self._fuse_textbook(features) if self.textbook else self._fuse(features)
        return self.classifier(self.dropout(F.relu(self.norm(fused_BDHW))))

    def _by_tiles(self, features: list[Tensor]) -> Tensor:
        maps = [x_BCHW.permute(0, 2, 3, 1) for x_BCHW in features]
        weights, biases = zip(*self._projections(), strict=True)
        others = [linear(x, weight) for x, weight in zip(maps[1:], weights[1:], strict=True)]
        bias = torch.stack(biases).sum(0)  # resizing leaves constants as they are
        return classify(maps[0], weights[0], bias, others, self.norm, self.dropout, self.classifier)

    def _fuse(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        fused = None
        for x_BCHW, (weight_DC, bias_D) in zip(features, self._projections(), strict=True):
            y_BDHW = F.linear(x_BCHW.permute(0, 2, 3, 1), weight_DC, bias_D).permute(0, 3, 1, 2)
            if y_BDHW.shape[2:] != size:
                y_BDHW = F.interpolate(y_BDHW, size=size, mode="bilinear", align_corners=False)
            fused = y_BDHW if fused is None else fused + y_BDHW
        return fused

    def _fuse_textbook(self, features: list[Tensor]) -> Tensor:
        size = features[0].shape[2:]
        projected = []
        for x_BCHW, layer in zip(features, self.linears, strict=True):
            y_BDHW = layer(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            projected.append(F.interpolate(y_BDHW, size=size, mode="bilinear", align_corners=False))
        return self.fuse(torch.cat(projected[::-1], dim=1))  # deepest stage first, as published

    def fold_norm(self) -> None:
        """For evaluation: the norm becomes a part of the fuse convolution."""
        fold(self, "fuse", "norm")

    def _fold(self) -> list[tuple[Tensor, Tensor]]:
        slices = self.fuse.weight[:, :, 0, 0].chunk(len(self.linears), dim=1)[::-1]
        folded = [(linear(w, layer.weight.t()), w @ layer.bias) for w, layer in zip(slices, self.linears, strict=True)]
        if self.fuse.bias is not None:
            folded[0] = folded[0][0], folded[0][1] + self.fuse.bias
        return folded

    def _projections(self) -> list[tuple[Tensor, Tensor]]:
        """W_i (D, C_i) and b_i (D) of every stage.

        Folding costs D * D * sum(C_i) multiplications whatever the input's size. In training the weights change at
        every step; in evaluation the result is kept until a parameter is replaced or written to.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled():
            return self._fold()
        parameters = [*self.fuse.parameters(), *(p for linear in self.linears for p in linear.parameters())]
        if any(p.is_inference() for p in parameters):  # these carry no version to tell a change by
            return self._fold()
        key = tuple((p.data_ptr(), p._version, p.dtype) for p in parameters)
        if self._folded is None or self._folded[0] != key:
            self._folded = (key, [(w.detach(), b.detach()) for w, b in self._fold()])
        return self._folded[1]

    def train(self, mode: bool = True) -> AllMLP:
        self._folded = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_folded": None}  # a copy of the module folds its own parameters
