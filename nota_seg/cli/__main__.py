"""`python -m nota_seg.cli`, which `dist_train.sh` launches in every process."""

from nota_seg.cli import entry

entry()
