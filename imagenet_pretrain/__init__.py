"""Pre-training on Tiny-ImageNet: its layouts, its augmentation, and the classification task on the common loop."""
