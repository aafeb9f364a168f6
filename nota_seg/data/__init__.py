"""Segmentation data: sources found by looking, labels, transforms, the loader, verification, downloads."""
