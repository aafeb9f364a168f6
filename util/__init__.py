"""What knows no model: files, seeds, pictures, palettes, cost counting.

Imports neither `nota_seg` nor `imagenet_pretrain`.
"""
