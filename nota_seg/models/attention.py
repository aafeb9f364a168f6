"""Attention for evaluation on the CPU; everywhere else it is torch's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nota_seg.models.layers import eager_on_cpu, product

SCORES = 1 << 18  # scores at a time: 1 MB
KEYS = 4096  # with more of them torch's kernel, which splits the keys too, is the better one


def attend(q_BhNd: Tensor, k_BhMd: Tensor, v_BhMd: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head, (B, h, N, d); `F.scaled_dot_product_attention` up to rounding.

    Without a gradient to keep and with few keys, as after spatial reduction, it is quicker to make the scores of some
    queries at a time by oneDNN's products, in the cache, and to divide the result rather than the scores by their sum.
    """
    B, h, N, d = q_BhNd.shape
    M = k_BhMd.shape[2]
    if torch.is_grad_enabled() or not eager_on_cpu(q_BhNd) or M > KEYS:
        return F.scaled_dot_product_attention(q_BhNd, k_BhMd, v_BhMd)
    out_BNhd = q_BhNd.new_empty(B, N, h, v_BhMd.shape[3])
    rows = max(1, SCORES // M)
    for b in range(B):
        for i in range(h):
            k_Md, v_dM = k_BhMd[b, i] * d**-0.5, v_BhMd[b, i].t().contiguous()
            for start in range(0, N, rows):
                part = slice(start, start + rows)
                scores = product(q_BhNd[b, i, part], k_Md)
                scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
                torch.div(product(scores, v_dM), scores.sum(dim=1, keepdim=True), out=out_BNhd[b, part, i])
    return out_BNhd.transpose(1, 2)
