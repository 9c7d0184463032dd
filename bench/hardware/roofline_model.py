"""Roofline model: the best possible times of a model on a device, scaled by the shares that similar devices reach.

A call (decoding step, answer token, prefill) takes the longest of three times:

* arithmetic: its matrix products (:mod:`f2edge.spec.flops`; with "plain" kernels all routed experts, with "plugin" the active ones) at the
  dense rate of its recipe's type;
* memory: its weights once; half-precision keys and values as often as the exported graphs read, join and write them
  (:mod:`export.tensorrt.traffic`); its activations, ``ACTIVATIONS`` half-precision values a token and layer for each of the width's and the
  experts' columns; and the sampler's passes over every score; at the device's bandwidth;
* launches: ``KERNELS`` kernels a layer and the norms of queries and keys, ``LAUNCH_US`` each, replayed from a CUDA graph.

The host's share is added: ``HOST_US`` for a run and for each copy that it queues, since steps and tokens wait for it.

Arithmetic and memory run at the shares of the ceilings in ``SHARES``.  These are not measurements of this project: they follow from eight
published results of another model and runtime (``PUBLISHED``); :func:`published_errors` has the model's error for each.
Encoders, the image tokenizer's encoder and the transfer of pictures are not included.

Axes: B branches or questions, P prompt columns, S text columns, N image tokens, R requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log

from engines.profile import Profile
from f2edge.spec.configuration import ModelConfiguration
from f2edge.spec.flops import image_flops, prompt_flops, step_flops, text_flops

#: Bytes of a weight by recipe; INT4 with a half-precision scale for each 128, NVFP4 with an eight-bit one for each 16.
WEIGHT_BYTES = {
    "fp32": 4.0, "fp16": 2.0, "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 2 / 128, "int4-gptq": 0.5 + 2 / 128, "nvfp4": 0.5 + 1 / 16,
}  # fmt: skip
#: Arithmetic types by recipe, in order of preference; INT4 quantizes weights only.
_ARITHMETIC = {
    "fp16": ("fp16",), "int8": ("int8", "fp16"), "fp8": ("fp8", "int8", "fp16"), "int4": ("fp16",), "int4-gptq": ("fp16",),
    "nvfp4": ("fp4", "fp8", "fp16"),
}  # fmt: skip
#: Half-precision values read or written for each column of a token in a layer: of the width, of the experts' hidden values.
ACTIVATIONS = (14, 3)
#: Kernels of one layer and of the rest of a call, and what one costs in a replayed graph (an assumption, not measured).
KERNELS, OTHER_KERNELS, LAUNCH_US = 18, 60, 2.0
#: How often the graphs move a column of keys and values: in a prefill; a prompt's in every step; an image's with every
#: token, an earlier text column's, a new one's.
PREFILLED, STEPPED, EXTENDED_IMAGE, EXTENDED_TEXT, EXTENDED_NEW = 3, 3, 1, 5, 4
#: How often the runner moves an earlier text column with every token: it copies the state to a fixed address, and the new one from it.
COPIED_TEXT = 4
#: The sampler's lookups, which nothing fuses: a 32-bit index and result are each written and read; and other passes over the scores.
LOOKUPS, SAMPLER_PASSES = 9, 5
#: Microseconds of host time for a run, and for each copy that it queues (assumptions); copies of a step: the inputs together, the codes,
#: the grids together; of a token: the inputs, the text's keys, its values, both new ones together, the logits.
HOST_US, STEP_COPIES, TOKEN_COPIES = (40.0, 5.0), 3, 5
#: Outputs of a head are padded to a multiple of this (export.tensorrt.recipes).
PADDED = 64
#: Columns of an ordinary prompt or question, and the answer's tokens that memory is reserved for.
PROMPT, ANSWER = 32, 128


@dataclass(frozen=True)
class CallCost:
    """Cost of one call: operations, bytes of weights and of other data, kernels, the recipe that determines the rate, and host time."""

    flops: float
    weights: float
    moved: float
    kernels: int
    recipe: str
    host_us: float = 0.0


@dataclass(frozen=True)
class Time:
    """Milliseconds of one call and the bound of the device's share: "compute", "memory" or "launch"."""

    ms: float
    bound: str


@dataclass(frozen=True)
class PublishedResult:
    """PublishedResult result: Qwen3-1.7B, batch 1, W4A16 with a half-precision head (TensorRT-Edge-LLM 0.10.0, JetPack 7.2)."""

    device: str
    gb_s: float
    fp16: float
    tokens_s: float
    prefill_ms: float


PUBLISHED = (
    PublishedResult("thor-t5000", 273.0, 258.0, 135.1, 145.0),
    PublishedResult("agx-orin-64", 204.8, 42.6, 89.5, 308.0),
    PublishedResult("orin-nx", 102.4, 19.2, 52.2, 674.0),
    PublishedResult("orin-nano", 102.0, 16.7, 32.3, 1021.0),
)
#: Qwen3-1.7B: 28 layers, width 2048, 16 query and 8 key heads of 128, SwiGLU of 6144, vocabulary 151936; 2048 prompt tokens.
_QWEN_LAYERS = 28 * (2 * 2048**2 + 2 * 2048 * 1024 + 3 * 2048 * 6144)
_QWEN_TOKEN_GB = (_QWEN_LAYERS * WEIGHT_BYTES["int4"] + 151936 * 2048 * 2) / 1e9
_QWEN_PREFILL_TFLOP = (2 * _QWEN_LAYERS * 2048 + 28 * 2 * 2048 * 2048**2) / 1e12


def _reached(measured: PublishedResult) -> tuple[float, float]:
    """Return the shares of bandwidth (one token) and arithmetic (prefill) that a published result reaches."""
    return measured.tokens_s * _QWEN_TOKEN_GB / measured.gb_s, _QWEN_PREFILL_TFLOP / (measured.prefill_ms / 1e3) / measured.fp16


def _mean_shares() -> tuple[float, float]:
    pairs = [_reached(row) for row in PUBLISHED]
    bandwidth, arithmetic = (exp(sum(map(log, column)) / len(pairs)) for column in zip(*pairs, strict=True))
    return bandwidth, arithmetic


#: Shares of bandwidth and arithmetic that count as reachable: geometric means over PUBLISHED.
SHARES = _mean_shares()


def published_errors() -> list[tuple[str, str, float, float]]:
    """Return device, metric, published and predicted value: tokens/s and prefill milliseconds of Qwen3-1.7B."""
    rows = []
    for row in PUBLISHED:
        rows.append((row.device, "tokens/s", row.tokens_s, row.gb_s * SHARES[0] / _QWEN_TOKEN_GB))
        rows.append((row.device, "prefill ms", row.prefill_ms, 1e3 * _QWEN_PREFILL_TFLOP / (row.fp16 * SHARES[1])))
    return rows


# The model's own sizes --------------------------------------------------------------------------------------------------


def hidden_columns(model: ModelConfiguration, moe: str) -> int:
    """Return the number of hidden columns of experts that one token computes."""
    experts = model.token_experts
    return experts.shared_width + (experts.routed if moe == "plain" else experts.active) * experts.routed_width


def layer_weights(model: ModelConfiguration, group: str) -> tuple[float, float]:
    """Return the weights of one layer of a task group outside and inside its routed experts."""
    experts, mixing = model.token_experts, {"t2i": 1, "mmu": 2}[group] if model.sequence_experts else 0
    base = 4 * model.width**2 + 2 * model.width * experts.shared_width + mixing * model.resampler_width * model.width
    return base, 2 * model.width * experts.routed * experts.routed_width


def _layers_bytes(model: ModelConfiguration, group: str, recipe: str, moe: str, read: str) -> float:
    """Return the bytes of a group's layers: ``read`` "all", or "token" for what one token touches."""
    base, routed = layer_weights(model, group)
    experts = model.token_experts
    if moe == "plugin" and experts.routed:
        touched = routed if read == "all" else routed * experts.active / experts.routed
        return model.layers * (base * WEIGHT_BYTES[recipe] + touched * WEIGHT_BYTES["fp16"])
    return model.layers * (base + routed) * WEIGHT_BYTES[recipe]


def cache_bytes(model: ModelConfiguration, columns: int) -> float:
    """Return the bytes of half-precision keys and values of all layers."""
    return 4.0 * model.layers * columns * model.width


def token_cache_bytes(model: ModelConfiguration, earlier: int) -> float:
    """Return the bytes of keys and values that ``mmu_extend`` moves for one token after ``earlier`` ones."""
    return cache_bytes(model, EXTENDED_IMAGE * model.understanding_columns + EXTENDED_TEXT * earlier + EXTENDED_NEW)


def head_bytes(model: ModelConfiguration, recipe: str) -> float:
    """Return the bytes of the text head, whose outputs are padded if their number is odd."""
    outputs = model.text_vocabulary + (-model.text_vocabulary % PADDED if model.text_vocabulary % 2 else 0)
    return model.width * outputs * WEIGHT_BYTES[recipe]


def sampler_bytes(model: ModelConfiguration, images: int) -> float:
    """Return the bytes that the sampler moves."""
    return (16.0 * LOOKUPS + 8.0 * SAMPLER_PASSES) * images * model.image_tokens * model.codes


def _host_us(copies: int) -> float:
    return HOST_US[0] + HOST_US[1] * copies


def _activation_bytes(model: ModelConfiguration, tokens: int, moe: str) -> float:
    return 2.0 * model.layers * tokens * (ACTIVATIONS[0] * model.width + ACTIVATIONS[1] * hidden_columns(model, moe))


def _as_computed(model: ModelConfiguration, moe: str) -> ModelConfiguration:
    """Return the configuration whose "active" experts are those that the kernels compute, for :mod:`f2edge.spec.flops`."""
    experts = model.token_experts
    return replace(model, token_experts=replace(experts, active=experts.routed)) if moe == "plain" and experts.routed else model


def _kernels(model: ModelConfiguration) -> int:
    """Return the kernels of all layers."""
    return (KERNELS + 2 * model.query_key_norm) * model.layers


def step_work(model: ModelConfiguration, recipe: str, moe: str, images: int = 1, prompt: int | None = None) -> CallCost:
    """Return the cost of ``t2i_step`` of guided images (two branches each); ``prompt``: padded columns."""
    columns = model.prompt_tokens + 3 if prompt is None else prompt
    flops = step_flops(_as_computed(model, moe), [columns] * 2 * images, images)
    tokens = 2 * images * (model.image_columns + 2)
    moved = _activation_bytes(model, tokens, moe) + cache_bytes(model, STEPPED * 2 * images * columns) + sampler_bytes(model, images)
    weights = _layers_bytes(model, "t2i", recipe, moe, "all") + model.width * model.codes * WEIGHT_BYTES[recipe]
    return CallCost(flops, weights, moved, _kernels(model) + OTHER_KERNELS, recipe, _host_us(STEP_COPIES))


def prompt_work(model: ModelConfiguration, recipe: str, moe: str) -> CallCost:
    """Return the cost of ``t2i_prefill`` of one prompt, padded to the longest."""
    columns = model.prompt_tokens + 3
    moved = _activation_bytes(model, columns, moe) + cache_bytes(model, PREFILLED * columns)
    flops = prompt_flops(_as_computed(model, moe), columns)
    return CallCost(flops, _layers_bytes(model, "t2i", recipe, moe, "all"), moved, _kernels(model), recipe)


def image_work(model: ModelConfiguration, recipe: str, moe: str) -> CallCost:
    """Return the cost of ``mmu_prefill`` of one face."""
    columns = model.understanding_columns
    moved = _activation_bytes(model, columns, moe) + cache_bytes(model, PREFILLED * columns)
    flops = image_flops(_as_computed(model, moe))
    return CallCost(flops, _layers_bytes(model, "mmu", recipe, moe, "all"), moved, _kernels(model), recipe)


def token_work(model: ModelConfiguration, recipe: str, moe: str, earlier: int = 2 * PROMPT) -> CallCost:
    """Return the cost of ``mmu_extend`` by one token of one answer."""
    weights = _layers_bytes(model, "mmu", recipe, moe, "token") + head_bytes(model, recipe)
    moved = _activation_bytes(model, 1, moe) + token_cache_bytes(model, earlier) + cache_bytes(model, COPIED_TEXT * earlier)
    flops = text_flops(_as_computed(model, moe), [1], earlier)
    return CallCost(flops, weights, moved, _kernels(model), recipe, _host_us(TOKEN_COPIES))


def resident_bytes(model: ModelConfiguration, profile: Profile, moe: str) -> float:
    """Return the bytes of both tasks' engines, each with separate weights, of tables, of the caches of one batch of each task, and of the
    scores and activations of one decoding step.
    """
    total = 0.0
    for graph in ("t2i_prefill", "t2i_step", "mmu_prefill", "mmu_extend"):
        total += _layers_bytes(model, graph[:3], profile.recipes[graph], moe, "all")
    rows = model.text_vocabulary + len(model.specials) + (model.codes if model.image_input == "table" else 0)
    total += 2.0 * rows * model.width * 4 + model.width * model.codes * WEIGHT_BYTES[profile.recipes["t2i_step"]]
    total += head_bytes(model, profile.recipes["mmu_extend"])
    images = max(profile.build.images)
    total += cache_bytes(model, 2 * images * (model.prompt_tokens + 3) + model.understanding_columns)
    total += cache_bytes(model, profile.build.questions * (PROMPT + ANSWER))
    live = 4.0 * 2 * images * (model.image_columns + 2) * (8 * model.width + 2 * hidden_columns(model, moe))
    return total + 16.0 * images * model.image_tokens * model.codes + min(live, profile.build.workspace_mib * 2**20)


# Times ------------------------------------------------------------------------------------------------------------------


def rate_of(profile: Profile, recipe: str) -> tuple[str, float]:
    """Return the arithmetic type of a recipe on a device and its dense rate in tera-operations per second."""
    kind = next(kind for kind in _ARITHMETIC[recipe] if kind in profile.rates)
    return kind, profile.rates[kind]


def time_of(work: CallCost, profile: Profile, *, ideal: bool = False) -> Time:
    """Return the longest of the three times and the host's; ``ideal`` uses the full ceilings, without launches and host."""
    bandwidth, arithmetic = (1.0, 1.0) if ideal else SHARES
    times = {
        "compute": 1e3 * work.flops / (rate_of(profile, work.recipe)[1] * 1e12 * arithmetic),
        "memory": 1e3 * (work.weights + work.moved) / (profile.memory.bandwidth_gb_s * 1e9 * bandwidth),
        "launch": 0.0 if ideal else work.kernels * LAUNCH_US / 1e3,
    }
    bound = max(times, key=lambda kind: times[kind])
    return Time(times[bound] + (0.0 if ideal else work.host_us / 1e3), bound)


@dataclass(frozen=True)
class Prediction:
    """Prediction for one device and model.

    Attributes:
        resident_gb: see :func:`resident_bytes`; ``fits``: whether the device's usable memory holds it.
        step: one decoding step of one guided image; ``step_ideal_ms`` at the whole of the ceilings.
        face_ms: two prompts and all steps of one image; decoding the tokens to pixels adds ``decode_ms``.
        token: one token of an answer.
        first_ms: an image's prefill, after which questions are answered.
    """

    device: str
    model: str
    moe: str
    resident_gb: float
    fits: bool
    step: Time
    step_ideal_ms: float
    steps: int
    decode_ms: float
    face_ms: float
    token: Time
    token_ideal_ms: float
    first_ms: float


def predict(model: ModelConfiguration, profile: Profile, moe: str, steps: int, decode_flops: float) -> Prediction:
    """Return the prediction for one device; ``decode_flops``: operations of the image tokenizer's decoder in half precision."""
    step = step_work(model, profile.recipes["t2i_step"], moe)
    token = token_work(model, profile.recipes["mmu_extend"], moe)
    step_time, token_time = time_of(step, profile), time_of(token, profile)
    prompt = time_of(prompt_work(model, profile.recipes["t2i_prefill"], moe), profile)
    decode = time_of(CallCost(decode_flops, 0.0, 0.0, 120, "fp16"), profile)
    resident = resident_bytes(model, profile, moe) / 1e9
    return Prediction(
        device=profile.name,
        model=model.name,
        moe=moe,
        resident_gb=resident,
        fits=resident <= profile.memory.usable_gb,
        step=step_time,
        step_ideal_ms=time_of(step, profile, ideal=True).ms,
        steps=steps,
        decode_ms=decode.ms,
        face_ms=2 * prompt.ms + steps * step_time.ms + decode.ms,
        token=token_time,
        token_ideal_ms=time_of(token, profile, ideal=True).ms,
        first_ms=time_of(image_work(model, profile.recipes["mmu_prefill"], moe), profile).ms,
    )
