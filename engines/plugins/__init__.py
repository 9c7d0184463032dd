"""Fused mixture of experts for TensorRT: one ONNX node, five Triton kernels, two kinds of plug-in.

The node ``F2FusedMoE`` (domain "f2edge") computes the *routed* part of :class:`export.model.experts.TokenExpertLayer`.  The shared expert
stays two ordinary MatMuls outside the node, which TensorRT quantizes and fuses as usual; their output is added.

Axes: T tokens, D width, E routed experts, K active, I width of one expert, A = T·K assignments.

| # | input | shape | type | note |
|---|---|---|---|---|
| 0 | x | (…, D) | fp32 or fp16 | T = product of the leading axes; fp32 routes exactly as the model does, experts round it to fp16 |
| 1 | router_weight | (D, E) | fp32 | input axis first, as in every lowered MatMul |
| 2 | router_bias | (E,) | fp32 | zeros, since our router has no bias |
| 3 | up_weight | (E, D, I), gated (E, D, 2·I) | fp16 | gated: columns [0, I) pass SiLU, [I, 2·I) are multiplied |
| 4 | up_bias | (E, I), gated (E, 2·I) | fp16 | |
| 5 | down_weight | (E, I, D) | fp16 | |
| 6 | down_bias | (E, D) | fp16 | zeros, since our layer's only bias belongs to the shared expert's MatMul |

Output 0: y (…, D) fp16.  Attributes: ``active`` (int, K, 1 ≤ K ≤ E) and ``gated`` (int, 0: GELU by its tanh approximation, 1: SwiGLU).  The
node must also have ``plugin_namespace`` "f2edge" and ``plugin_version`` "1", since TensorRT 10.3 ignores its domain.

    p = softmax(x · router_weight + router_bias)      in fp32
    C = the K most probable experts; ties go to the lower index
    y = Σ_{e in C} p_e / Σ_{c in C} p_c · (act(x · up_weight[e] + up_bias[e]) · down_weight[e] + down_bias[e])

:mod:`~engines.plugins.reference` implements this definition in NumPy; :mod:`~engines.plugins.fused_moe` plans the kernels of
:mod:`~engines.plugins.fused_moe_kernels` for a shape; :mod:`~engines.plugins.compile_kernels` compiles them to cubins and PTX without a
GPU; :mod:`~engines.plugins.tensorrt_class` (TensorRT 10.3 and later) and :mod:`~engines.plugins.tensorrt_aot` (10.9 and later) are the
plug-ins. Triton, cuda-bindings and TensorRT are imported when they are used; the device does not need Triton.
"""
