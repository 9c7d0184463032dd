"""The whole transformer in PyTorch on this device, with random weights: a guided step, a prompt, a picture, an answer token.

    python -m bench.hardware.whole_model --config 1.8b

Weights of products are in half precision under autocast; routers and norms stay in fp32, as in the TensorRT graphs.  Each call is
timed eagerly, by ``torch.compile``, and on a GPU as a CUDA graph of the eager call.  What a form cannot do is a row with the reason.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from bench.hardware.kernels import timed_us
from export.model.experts import Router
from export.model.transformer import UnifiedTransformer
from f2edge.errors import InputError
from f2edge.spec.configuration import CONFIGURATIONS, ModelConfiguration

REPEATS = 15
#: Valid columns of a prompt, and earlier text of an answer's token.
PROMPT_TOKENS, ANSWER_TOKENS = 20, 40
FORMS = ("eager", "CUDA graph", "torch.compile")

Call = Callable[[], Any]


def halved(model: UnifiedTransformer, dtype: torch.dtype) -> UnifiedTransformer:
    """Cast the weights of all products but the routers'; in place."""
    kept = {id(part) for module in model.modules() if isinstance(module, Router) for part in module.modules()}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module) not in kept:
            module.to(dtype)
    return model


def calls(model: UnifiedTransformer, device: torch.device) -> dict[str, Call]:
    """Return the four calls by name; their inputs are made here."""
    c = model.configuration

    def whole(*shape: int, below: int = 2) -> Tensor:
        return torch.randint(below, shape, device=device)

    def lengths(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    P = c.prompt_tokens + 3
    prompt, prompt_lengths = whole(2, P, below=c.text_vocabulary), lengths(PROMPT_TOKENS, 3)
    codes, ratio = torch.full((2, c.image_tokens), c.codes, device=device), torch.full((2,), 0.5, device=device)
    prefix = model.prefill_prompt(prompt, prompt_lengths)
    found: dict[str, Call] = {
        "prompt": lambda: model.prefill_prompt(prompt, prompt_lengths),
        "guided step": lambda: model.image_logits(codes, *prefix, prompt_lengths, ratio),
    }
    if c.understanding != "codes":
        return found
    features = [torch.randn(1, s.vectors, s.width, device=device) if s else torch.zeros(0, device=device) for s in (c.semantic, c.identity)]
    picture = whole(1, c.image_tokens, below=c.codes)
    image = model.prefill_image(picture, *features)
    text = [kv[..., :ANSWER_TOKENS, :].contiguous() for kv in image]
    word, word_lengths = whole(1, 1, below=c.text_vocabulary), lengths(ANSWER_TOKENS + 1)
    found["picture"] = lambda: model.prefill_image(picture, *features)
    found["answer token"] = lambda: model.extend_text(word, word_lengths, *image, *text)
    return found


def milliseconds(work: Call, device: torch.device, *, graph: bool = False) -> float:
    """Return the median time of a call after a warm-up."""
    if device.type == "cuda":
        return timed_us(work, graph=graph) / 1e3
    work()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(
    configuration: ModelConfiguration,
    device: torch.device,
    forms: tuple[str, ...] = FORMS,
    partial: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a model of random weights: ``{"device", "torch", "parameters", "weights_gb", "peak_gb", "rows"}``.

    ``partial`` is called with the document so far after each row: compilation may take longer than there is time.
    """
    torch.manual_seed(0)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), torch.autocast(device.type, dtype=dtype), device:
        model = halved(UnifiedTransformer(configuration).eval(), dtype)
        model.use_fused_attention(fused=True)
        made = calls(model, device)
        for form in forms:
            if form == "CUDA graph" and device.type != "cuda":
                continue
            for name, work in made.items():
                rows.append({"call": name, "form": form, **_timed(work, device, form)})
                partial(_document(model, configuration, device, rows))
    return _document(model, configuration, device, rows)


def _document(
    model: UnifiedTransformer, configuration: ModelConfiguration, device: torch.device, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "configuration": configuration.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_gb": size / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "rows": rows,
    }


def _timed(work: Call, device: torch.device, form: str) -> dict[str, Any]:
    try:
        ready = torch.compile(work, options={"pattern_matcher": False}) if form == "torch.compile" else work
        return {"ms": milliseconds(ready, device, graph=form == "CUDA graph")}
    except Exception as error:  # noqa: BLE001  # a form that fails is a result
        return {"ms": None, "reason": (str(error).strip().splitlines() or [type(error).__name__])[0][:300]}


def best(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the fastest milliseconds of each call."""
    found: dict[str, float] = {}
    for row in document["rows"]:
        if row["ms"] is not None:
            found[row["call"]] = min(row["ms"], found.get(row["call"], float("inf")))
    return found


def main(config: Annotated[str, typer.Option("--config")] = "1.8b", device: Annotated[str, typer.Option("--device")] = "cuda") -> None:
    """Print the measurements as one JSON line, after each row and at the end."""
    if config not in CONFIGURATIONS:
        raise InputError(f"unknown configuration {config!r}; choose one of: {', '.join(CONFIGURATIONS)}")
    print(json.dumps(measure(CONFIGURATIONS[config], torch.device(device), partial=lambda made: print(json.dumps(made), flush=True))))


if __name__ == "__main__":
    typer.run(main)
