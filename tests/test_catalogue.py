"""docs/models.md is what the registry says; the study's table agrees with what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nota_seg import catalogue
from nota_seg.models.registry import BLOCKS, DECODERS, FEEDFORWARDS, MIXERS, SKIPS, STEMS
from nota_seg.models.zoo import list_models

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.fixture(scope="module")
def study() -> list[dict[str, Any]]:
    return catalogue.study_table()


@pytest.mark.slow
def test_the_document_is_what_the_command_writes(study: list[dict[str, Any]]) -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == catalogue.markdown(catalogue.model_table(list_models()), study)


@pytest.mark.slow
def test_the_study_is_met_within_half_a_per_cent_or_a_note_says_why_not(study: list[dict[str, Any]]) -> None:
    for row in study:
        assert catalogue.agrees(row) == (not row["note"]), row
    assert sum(catalogue.agrees(row) for row in study) == 10
    final = next(row for row in study if row["name"] == "nota-lite")
    assert final["counted"] == {"params": 7.355, "layers": 7.143, "gmacs": 9.684}


def test_every_component_is_in_the_table() -> None:
    named = {(kind, name) for kind, name, *_ in catalogue.component_table()}
    registries = (MIXERS, FEEDFORWARDS, SKIPS, STEMS, BLOCKS, DECODERS)
    assert len(named) == sum(len(registry.names()) for registry in registries)
    assert all(text for *_, text in catalogue.component_table())
