"""Hamburger decoder (arXiv 2109.04553, figure 2) in the light form of SegNeXt (arXiv 2209.08575, section 3.2).

Global context is a low-rank reconstruction of the map: non-negative matrix factorisation X ~ bases @ coef^T, between
two slices of bread (1x1 convolutions). Stages 2 to 4 take part, at the size of stage 2, where the logits stay.

What differs: published code draws new bases at every forward, in evaluation too, so that two evaluations of the same
weights disagree. Here the bases are random in training alone; evaluation starts from fixed ones, saved with the
weights. The fusing convolution meets each stage at its own size (see `parts.fuse`).

Shapes: B batch, C channels, H W height and width, D ham channels, N = H * W positions, R rank.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nota_seg.models.decoders.parts import fuse
from nota_seg.models.layers import Pointwise
from nota_seg.models.registry import DECODERS
from util.errors import InputError, did_you_mean

EPS = 1e-6  # keeps the quotients of the updates finite where a map is all zero
FORMS = ("light", "pruned")


class NMF(nn.Module):
    """The ham: non-negative matrix factorisation by multiplicative updates (Lee and Seung), gradients through all.

    Args:
        dim: Channels D.
        rank: Bases R.
        steps_train: Updates in training.
        steps_eval: Updates in evaluation.
    """

    bases: Tensor

    def __init__(self, dim: int, rank: int, steps_train: int, steps_eval: int) -> None:
        super().__init__()
        self.steps_train = steps_train
        self.steps_eval = steps_eval
        # (1, D, R); a (B, D, R) tensor put in its place gives every picture its own start.
        self.register_buffer("bases", torch.empty(1, dim, rank))
        self.init_own_weights()

    @torch.no_grad()
    def init_own_weights(self) -> None:
        """The bases that evaluation starts from: always the same draw, whatever the seed of the run."""
        if not getattr(self.bases, "_is_hf_initialized", False):
            draw = torch.rand(self.bases.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
            self.bases.copy_(draw)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """(B, D, H, W), non-negative, to its reconstruction of rank R. In float32 whatever the precision around it:
        products over all positions overflow float16, and bfloat16 loses the small steps."""
        B, D, H, W = x_BDHW.shape
        device = x_BDHW.device.type
        has_autocast = torch.amp.is_autocast_available(device)  # the meta device has none
        with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
            bases_BDR, coef_BNR = self.factorise(x_BDHW.reshape(B, D, H * W).float())
            out_BDN = bases_BDR @ coef_BNR.transpose(1, 2)
        return out_BDN.view(B, D, H, W).to(x_BDHW.dtype)

    def factorise(self, x_BDN: Tensor) -> tuple[Tensor, Tensor]:
        """Bases (B, D, R) and coefficients (B, N, R) whose product approximates x."""
        x_BND = x_BDN.transpose(1, 2)
        bases_BDR = self._start(x_BDN)
        coef_BNR = F.softmax(x_BND @ bases_BDR, dim=-1)
        for _ in range(self.steps_train if self.training else self.steps_eval):
            coef_BNR = self._update(coef_BNR, x_BND, bases_BDR)
            bases_BDR = self._update(bases_BDR, x_BDN, coef_BNR)
        return bases_BDR, self._update(coef_BNR, x_BND, bases_BDR)  # the coefficients of the last bases

    def _start(self, x_BDN: Tensor) -> Tensor:
        B, (D, R) = x_BDN.shape[0], self.bases.shape[1:]
        if self.training:
            bases_BDR = torch.rand(B, D, R, device=x_BDN.device, dtype=x_BDN.dtype)
        else:
            bases_BDR = self.bases.to(x_BDN.dtype).expand(B, D, R)
        return F.normalize(bases_BDR, dim=1)

    @staticmethod
    def _update(factor: Tensor, x: Tensor, other: Tensor) -> Tensor:
        """One multiplicative step of `factor` towards x ~ factor @ other^T."""
        return factor * (x @ other) / (factor @ (other.transpose(1, 2) @ other) + EPS)


class ConvNorm(nn.Module):
    """1x1 convolution without bias, GroupNorm."""

    def __init__(self, in_channels: int, channels: int, groups: int, affine: bool = True) -> None:
        super().__init__()
        self.conv = Pointwise(in_channels, channels, bias=False)
        self.norm = nn.GroupNorm(math.gcd(groups, channels), channels, affine=affine)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.norm(self.conv(x_BCHW))


@DECODERS.register("hamburger")
class Hamburger(nn.Module):
    """Squeeze; bread, ham, bread, residual; align; classify. Logits at the stride of stage 2.

    Args:
        channels: Channels of each stage, finest first; the first stage takes no part.
        strides: Stride of each stage.
        num_labels: Classes K.
        dim: Channels D of the ham.
        rank: Bases R of the factorisation.
        steps_train: Its updates in training.
        steps_eval: Its updates in evaluation.
        form: `light`, or `pruned`: ham alone, without breads, align and the scales of the norm before it.
        out_dim: Channels after align, `dim` by default; the pruned form has no such layer.
        groups: Of the GroupNorms; the largest common divisor with their channels is taken.
        dropout: Before the classifier, whole channels at a time.
        textbook: Fuse the stages in the order of the paper (for comparison; same parameters, equal logits).

    Raises:
        InputError: Fewer than two stages, an unknown form, sizes below 1.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        num_labels: int,
        dim: int = 512,
        rank: int = 64,
        steps_train: int = 6,
        steps_eval: int = 7,
        form: str = "light",
        out_dim: int | None = None,
        groups: int = 32,
        dropout: float = 0.1,
        textbook: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError(f"decoder 'hamburger' leaves the first stage out and needs 2 or more, got {len(channels)}")
        if form not in FORMS:
            raise InputError(f"decoder 'hamburger' has no form {form!r}: {did_you_mean(form, FORMS)}")
        for name, value in dict(dim=dim, rank=rank, steps_train=steps_train, steps_eval=steps_eval).items():
            if value < 1:
                raise InputError(f"decoder 'hamburger': {name} must be at least 1, got {value}")
        if form == "pruned" and out_dim not in (None, dim):
            raise InputError(f"decoder 'hamburger': the pruned form keeps its {dim} channels, got out_dim={out_dim}")
        out_dim = out_dim or dim
        self.stride = strides[1]
        self.textbook = textbook
        self.has_breads = form == "light"
        # The pruned models' published sizes leave no room for 2 D parameters of this norm (and none for biases).
        self.squeeze = ConvNorm(sum(channels[1:]), dim, groups, affine=self.has_breads)
        self.nmf = NMF(dim, rank, steps_train, steps_eval)
        if self.has_breads:
            self.ham_in = Pointwise(dim, dim)
            self.ham_out = ConvNorm(dim, dim, groups)
            self.align = ConvNorm(dim, out_dim, groups)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(out_dim, num_labels)

    def forward(self, features: list[Tensor]) -> Tensor:
        size = features[1].shape[2:]
        fused_BDHW = fuse(self.squeeze.conv, features[1:], size, textbook=self.textbook)
        x_BDHW = F.relu(self.squeeze.norm(fused_BDHW))
        if self.has_breads:
            x_BDHW = F.relu(x_BDHW + self.ham_out(self.nmf(F.relu(self.ham_in(x_BDHW)))))
            x_BDHW = F.relu(self.align(x_BDHW))
        else:
            x_BDHW = F.relu(x_BDHW + self.nmf(x_BDHW))
        return self.classifier(self.dropout(x_BDHW))
