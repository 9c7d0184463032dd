"""llama.cpp as a baseline, if installed: answers of a model of the same shape in Q4_0, its usual 4-bit format.

    pip install llama-cpp-python gguf          # compiles llama.cpp
    python -m bench paper-size --config show-o --baselines lineage,cached,llama.cpp

Show-o's transformer is Phi-1.5 with norms of queries and keys.  llama.cpp knows it without them ("phi2"), so it does that much less.  The
file holds random blocks of the same sizes, so its speed is that of real weights.  Only answers are measured; llama.cpp has no omni
attention, so it reads image and question causally, which costs no more.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from f2edge.errors import InputError
from f2edge.spec.configuration import ModelConfiguration

#: Weights of one block of Q4_0 and its bytes: an fp16 scale and 32 codes of four bits.
_BLOCK, _BLOCK_BYTES = 32, 18


def unavailable(model: ModelConfiguration) -> str:
    """Return why llama.cpp cannot run this model here; "" if it can."""
    if model.token_experts.routed:
        return f"llama.cpp: does not support the shape of {model.name} (routed experts)"
    missing = [name for name in ("llama_cpp", "gguf") if find_spec(name) is None]
    return f"llama.cpp: {' and '.join(missing)} not installed; pip install llama-cpp-python gguf" if missing else ""


def write_gguf(path: Path, model: ModelConfiguration, seed: int = 0) -> Path:
    """Write a "phi2" file of ``model``'s text path with random Q4_0 weights; holds the whole file in memory.

    Raises:
        InputError: routed experts, or a width that Q4_0's blocks do not divide.
    """
    D, hidden, V = model.width, model.token_experts.shared_width, model.text_vocabulary
    if model.token_experts.routed or D % _BLOCK or hidden % _BLOCK:
        raise InputError(f"configuration {model.name!r}: only dense models with widths divisible by {_BLOCK} fit Q4_0")
    gguf = import_module("gguf")
    writer = gguf.GGUFWriter(str(path), "phi2", use_temp_file=False)
    writer.add_name(f"{model.name}, random weights")
    writer.add_context_length(4096)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(hidden)
    writer.add_block_count(model.layers)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.heads)
    writer.add_layer_norm_eps(model.layer_norm_eps)
    writer.add_rope_dimension_count(model.rotary)
    writer.add_vocab_size(V)
    writer.add_tokenizer_model("no_vocab")
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = rng.integers(0, 256, size=(rows, columns // _BLOCK, _BLOCK_BYTES), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(columns**-0.5 / 4.6).tobytes(), dtype=np.uint8)  # codes 0 … 15, minus 8: spread 4.6
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def vector(name: str, size: int, value: float = 0.0) -> None:
        writer.add_tensor(name, np.full(size, value, dtype=np.float32))

    def norm(name: str) -> None:
        vector(f"{name}.weight", D, 1.0)
        vector(f"{name}.bias", D)

    matrix("token_embd.weight", V, D)
    for layer in range(model.layers):
        at = f"blk.{layer}"
        norm(f"{at}.attn_norm")
        for part, rows, columns in (("attn_qkv", 3 * D, D), ("attn_output", D, D), ("ffn_up", hidden, D), ("ffn_down", D, hidden)):
            matrix(f"{at}.{part}.weight", rows, columns)
            vector(f"{at}.{part}.bias", rows)
    norm("output_norm")
    matrix("output.weight", V, D)
    vector("output.bias", V)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def token_bytes(path: Path, model: ModelConfiguration) -> int:
    """Return the bytes that one answer token reads: the file without its embedding table, of which it reads a row."""
    return path.stat().st_size - model.text_vocabulary * model.width // _BLOCK * _BLOCK_BYTES


def time_llama(path: Path, columns: int, threads: int, repeats: int) -> dict[str, list[float]]:
    """Time the prefill of ``columns`` tokens of image and question, then single answer tokens; the first of each does not count.

    Returns:
        Milliseconds: "prefill_ms" and "token_ms", as :func:`bench.latency.stages.time_answers`.
    """
    llama: Any = import_module("llama_cpp").Llama(
        str(path), n_ctx=columns + repeats + 8, n_batch=columns, n_ubatch=columns, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    rng = np.random.default_rng(0)
    times = {"prefill_ms": list[float](), "token_ms": list[float]()}
    for stage, tokens in (("prefill_ms", columns), ("token_ms", 1)):
        for number in range(repeats + 1):
            if tokens > 1:
                llama.reset()
            start = perf_counter()
            llama.eval(rng.integers(2, 1000, tokens).tolist())
            if number:
                times[stage].append(1e3 * (perf_counter() - start))
    return times
