"""Segmentation data: sources found by looking, labels, transforms, the loader, verification, downloads."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version at import
