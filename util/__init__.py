"""What knows no model: files, seeds, pictures, palettes, cost counting.

Imports neither `nota_seg` nor `imagenet_pretrain`.
"""

import os

# albumentations would ask the network for a newer version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
