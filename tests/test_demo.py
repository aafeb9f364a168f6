"""The demo, shortened: the whole chain of verbs on drawn data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagenet_pretrain.pretrain import pretrain
from nota_seg.demo import demo
from util.errors import InputError


@pytest.mark.slow
def test_the_whole_chain(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    table = demo(output, pretrain_steps=4, finetune_steps=3, pretrain=pretrain)
    assert "pre-trained" in table and "from scratch" in table and "GMACs" in table
    assert (output / "prediction.png").stat().st_size > 1000
    assert len(list((output / "predictions").glob("*_overlay.png"))) == 4
    assert json.loads((output / "flops.json").read_text())["uncounted"] == {}
    for name in ("pre-trained", "from-scratch"):
        assert 0 <= json.loads((output / f"finetune-{name}" / "eval.json").read_text())["miou"] <= 1
    with pytest.raises(InputError, match="--overwrite replaces it"):
        demo(output, pretrain=pretrain)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1").touch()
    with pytest.raises(InputError, match="name a new folder"):
        demo(thesis, overwrite=True, pretrain=pretrain)
    assert (thesis / "chapter1").exists()
