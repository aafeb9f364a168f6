"""Scaled dot-product attention, on the CPU some queries at a time where nothing is differentiated.

torch's own kernel takes small blocks of queries by MKL. Here the scores of many queries are a product by oneDNN: a
sixth of SegFormer's encoder at 512x512 less, a quarter at 768x1536 (docs/performance.md).

Shapes: B batch, h heads, N queries, M keys, d channels of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nota_seg.models.layers import eager_on_cpu, product

PIECE = 1 << 20  # scores at a time: 4 MB
FEW = 512  # queries; of fewer torch's own kernel is as fast


def attention(q_BhNd: Tensor, k_BhMd: Tensor, v_BhMd: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Args:
        q_BhNd: Queries.
        k_BhMd: Keys.
        v_BhMd: Values.

    Returns:
        (B, N, h, d): the heads of a query lie together, unlike in `F.scaled_dot_product_attention`.
    """
    B, h, N, d = q_BhNd.shape
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BhNd, k_BhMd, v_BhMd))
    if grad or N < FEW or not eager_on_cpu(q_BhNd):
        return F.scaled_dot_product_attention(q_BhNd, k_BhMd, v_BhMd).transpose(1, 2)
    out_BNhd = q_BhNd.new_empty(B, N, h, d)
    step = max(1, PIECE // k_BhMd.shape[2])
    k_BhMd = k_BhMd * d**-0.5
    for b in range(B):
        for i in range(h):
            k_Md, v_dM = k_BhMd[b, i], v_BhMd[b, i].t().contiguous()
            for rows in (slice(start, start + step) for start in range(0, N, step)):
                scores_RM = product(q_BhNd[b, i, rows], k_Md)
                out_BNhd[b, rows, i] = product(torch.softmax(scores_RM, dim=-1), v_dM)
    return out_BNhd
