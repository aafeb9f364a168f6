"""Segmentation data: sources found by looking, labels, transforms, the loader, verification, downloads."""

import util  # noqa: F401  (its first lines speak to albumentations, which modules here import before ours)
