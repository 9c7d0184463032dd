"""``f2edge verify`` where the runtime rounds otherwise than that of the exporting machine."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime
import pytest

from f2edge.cli.bundles import _check_tokens
from f2edge.errors import BackendError
from f2edge.pipeline import FacePipeline

pytestmark = pytest.mark.runtime


def test_other_tokens_are_a_fault_unless_the_runtime_is_known_to_round_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = FacePipeline.load("nano", threads=1)
    manifest = pipeline.bundle.manifest
    smoke = manifest.smoke
    assert smoke is not None
    own = pipeline.generate(smoke.prompt, seeds=smoke.seed)[0].codes.tolist()
    bundle = pipeline.bundle

    def expect(equal: int) -> None:
        codes = (*own[:equal], *((code + 1) % manifest.layout.codes for code in own[equal:]))
        pipeline.bundle = replace(bundle, manifest=replace(manifest, smoke=replace(smoke, codes=codes)))

    expect(len(own) // 12)
    monkeypatch.setattr(onnxruntime, "__version__", "1.30.0")
    with pytest.raises(BackendError, match="agree with the exporting machine"):
        _check_tokens(pipeline)
    monkeypatch.setattr(onnxruntime, "__version__", "1.23.2")
    assert "older than 1.30" in _check_tokens(pipeline)
    expect(0)
    with pytest.raises(BackendError, match=f"0 of {len(own)} tokens agree"):
        _check_tokens(pipeline)
