"""transformers' SegFormer and ours with the same weights."""

from __future__ import annotations

import tempfile

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForImageClassification, SegformerForSemanticSegmentation

import nota_seg

SIZES = {
    "b0": dict(hidden_sizes=[32, 64, 160, 256], depths=[2, 2, 2, 2], decoder_hidden_size=256),
    "b2": dict(hidden_sizes=[64, 128, 320, 512], depths=[3, 4, 6, 3], decoder_hidden_size=768),
}


def pair(size: str, num_labels: int = 150, task: str = "segmentation") -> tuple[nn.Module, nn.Module]:
    """(ours, theirs), in evaluation mode, no weight at its default; transformers' epsilon 1e-5 in both."""
    generator = torch.Generator().manual_seed(0)
    peer = {"segmentation": SegformerForSemanticSegmentation, "classification": SegformerForImageClassification}[task]
    theirs = peer(SegformerConfig(num_labels=num_labels, **SIZES[size]))
    for name, value in theirs.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator)
            if "running_var" in name:
                value.copy_(noise.abs() + 0.5)
            elif value.ndim == 1:
                value.add_(0.1 * noise)
            else:
                value.copy_(noise / value[0].numel() ** 0.5)
    ours = nota_seg.create_model(f"segformer-{size}", task, num_labels=num_labels, layer_norm_eps=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        report = nota_seg.load_checkpoint(ours, folder)
    assert not report.reinitialised and not report.unused, report
    return ours.eval(), theirs.eval()


def pictures(batch: int, height: int, width: int) -> Tensor:
    """(batch, 3, height, width), as normalised pictures are distributed."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
