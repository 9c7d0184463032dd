"""Checked pictures in the engine: what the pipeline draws, whoever shares the batch, and whatever time there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from f2edge.bundle.bundle import Bundle
from f2edge.engine.requests import EditRequest, GenerateRequest
from f2edge.errors import InputError
from f2edge.results import EditedFace, GeneratedFace, GenerateOptions
from tests.support.engine_fake import Bench, face, generate, question

pytestmark = pytest.mark.runtime

PROMPT = "an old man with a beard and a cap"


def test_checked_pictures_are_those_of_the_pipeline_whoever_shares_their_batches(bench: Bench) -> None:
    options = GenerateOptions(steps=5)
    asked = [bench.ask(GenerateRequest(PROMPT, seed, options, check=2)) for seed in range(4)]
    edits = [bench.ask(EditRequest(face(seed), PROMPT, "hair", seed, options, check=3)) for seed in range(2)]
    others = [bench.ask(generate(7, steps=8)), bench.ask(question(1))]
    bench.run()
    checks = []
    for seed, heard in enumerate(asked):
        result = heard.done.result
        (alone,) = bench.alone.generate(PROMPT, seeds=seed, options=options, check=True)
        assert isinstance(result, GeneratedFace)
        assert np.array_equal(result.codes, alone.codes)
        assert result.image.tobytes() == alone.image.tobytes()
        assert result.check == alone.check
        assert (heard.done.steps, heard.done.degraded, len(result.step_ms)) == (5, False, 5)
        checks.append(result.check)
        (first,) = bench.alone.generate(PROMPT, seeds=seed, options=options)
        (reread,) = bench.alone.generate(PROMPT, seeds=seed, options=options, check=1)
        assert first.check is None
        assert reread.check is not None
        assert alone.check is not None
        assert alone.check.score >= reread.check.score, "more repairs are never worse"
    assert any(check is not None and check.repairs for check in checks)
    assert all(check is not None and check.named == 3 for check in checks)
    for seed, heard in enumerate(edits):
        result = heard.done.result
        alone_edit = bench.alone.edit(face(seed), PROMPT, "hair", seed=seed, options=options, check=3)
        assert isinstance(result, EditedFace)
        assert np.array_equal(result.codes, alone_edit.codes)
        assert result.check == alone_edit.check
        outside = ~bench.alone.token_mask(result.region)
        assert np.array_equal(result.codes[outside], result.original_codes[outside])
    assert all(heard.done for heard in others)


def test_a_deadline_ends_repairs_and_hands_over_the_best_attempt(bench: Bench) -> None:
    bench.learn()
    found = set()
    for budget_ms in (190, 230, 270, 310, 350, 600):
        for seed in range(3):
            deadline = bench.clock.now + budget_ms / 1e3
            heard = bench.ask(GenerateRequest(PROMPT, seed, GenerateOptions(steps=6), check=3), deadline=deadline)
            bench.run()
            result = heard.done.result
            assert heard.done.ended <= deadline
            assert isinstance(result, GeneratedFace)
            found.add(-1 if result.check is None else result.check.repairs)
    assert len(found) >= 3, found
    assert bench.loop.stats().failed == {}


def test_of_protected_faces_nothing_sensitive_is_said(bundle: Bundle, tmp_path: Path) -> None:
    photographed = replace(bundle, manifest=replace(bundle.manifest, faces="photographed"))
    bench = Bench(photographed)
    for seed in range(6):
        (result,) = bench.pipeline.generate("an old man", seeds=seed, options=GenerateOptions(steps=2), check=2)
        assert result.check is not None
        assert (result.check.score, result.check.missing, result.check.named) == (1.0, (), 0)
        runs = bench.backend.runs["mmu_extend"]
        edited = bench.pipeline.edit(face(seed), "an old man", "hair", seed=seed, options=GenerateOptions(steps=2), check=2)
        assert edited.check is not None
        assert (edited.check.missing, edited.check.repairs) == ((), 0)
        assert bench.backend.runs["mmu_extend"] == runs, "a given face is not even read for it"


def test_a_number_of_repairs_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="check"):
        GenerateRequest(PROMPT, check=9)
