"""The tests; f2edge comes first, for it keeps ONNX Runtime from reporting to anybody."""

import f2edge as _f2edge  # noqa: F401
