"""Kernel plan of the fused mixture of experts for a layer's shape: constants, grids, arguments and workspace.

Pure arithmetic, shared by compilation and launch.  Axes: :mod:`engines.plugins`.

>>> plan = KernelPlan(MoEShape(width=2048, experts=8, expert_width=512, active=4), "fp32", SMALL)
>>> [launch.kernel for launch in plan.launches(258)]
['route', 'sort', 'up', 'down', 'combine']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from f2edge.errors import InputError

X_TYPES = ("fp16", "fp32")
#: The node's inputs, in order.
INPUTS = ("x", "router_weight", "router_bias", "up_weight", "up_bias", "down_weight", "down_bias")
ALIGNMENT = 256


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least n ≥ 1."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class MoEShape:
    """Shape of one layer's routed experts.

    Raises:
        InputError: a size below 1, more active experts than experts, or more than 128 experts (the router holds all in registers).
    """

    width: int
    experts: int
    expert_width: int
    active: int
    gated: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.expert_width, self.active) < 1 or not self.active <= self.experts <= 128:
            raise InputError(f"fused experts: need sizes of at least 1 and active <= experts <= 128, got {self.label}")

    @property
    def label(self) -> str:
        """Name of the shape in file names and tables."""
        return f"d{self.width}-e{self.experts}x{self.expert_width}-k{self.active}-{'swiglu' if self.gated else 'gelu'}"

    def blocks(self, tokens: int, rows: int) -> int:
        """Return enough row blocks for any routing: every expert may end with a partial block."""
        return cdiv(tokens * self.active, rows) + self.experts


@dataclass(frozen=True)
class Tile:
    """Tile sizes.

    The grouped products compute blocks of ``rows`` by ``columns`` with ``inner`` values of the sum at a time (powers of two, at least 16);
    routing and combining process ``tokens`` tokens at a time.
    """

    name: str
    rows: int
    columns: int
    inner: int
    tokens: int
    warps: int
    stages: int


#: For decoding: few rows per expert; the time is spent reading weights once.
SMALL = Tile("small", rows=16, columns=32, inner=128, tokens=1, warps=4, stages=3)
#: For prefill and denoising: many rows per expert.
LARGE = Tile("large", rows=64, columns=64, inner=32, tokens=8, warps=4, stages=3)
TILES: Mapping[str, Tile] = {tile.name: tile for tile in (SMALL, LARGE)}


def choose_tile(shape: MoEShape, tokens: int) -> Tile:
    """Return the small tile if an expert gets at most 16 rows on average, else the large one."""
    return SMALL if tokens * shape.active <= SMALL.rows * shape.experts else LARGE


@dataclass(frozen=True)
class Grid:
    """Number of programs of a launch: ``(cdiv(T · factor, divisor) + extra, y)``."""

    factor: int = 0
    divisor: int = 1
    extra: int = 0
    y: int = 1

    def of(self, tokens: int) -> tuple[int, int]:
        """Return the grid for T tokens."""
        return cdiv(tokens * self.factor, self.divisor) + self.extra, self.y

    def __str__(self) -> str:
        products = f"T*{self.factor}" if self.factor != 1 else "T"
        first = f"ceil({products}/{self.divisor})" if self.divisor != 1 else products
        x = "+".join(part for part in (first if self.factor else "", str(self.extra) if self.extra else "") if part)
        return f"({x}, {self.y})"


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile: ``arguments`` in order, each with its Triton type, then constants; ``file`` names the cubin."""

    name: str
    file: str
    arguments: tuple[tuple[str, str], ...]
    constants: Mapping[str, int]
    grid: Grid
    warps: int
    stages: int = 1

    def document(self) -> dict[str, Any]:
        """Return the kernel's entry of ``kernels.json``."""
        return {
            "kernel": self.name,
            "file": self.file,
            "arguments": [list(argument) for argument in self.arguments],
            "constants": dict(self.constants),
            "grid": {**asdict(self.grid), "formula": str(self.grid)},
            "warps": self.warps,
        }


def for_target(kernel: Kernel, target: int) -> Kernel:
    """Return the kernel adapted to a compute capability.

    Triton uses no tensor cores before sm_80: products there are fused multiply-adds in registers, and need more warps and a smaller inner
    block to avoid spills.  Grid and memory stay the same.
    """
    if target >= 80 or "BK" not in kernel.constants:
        return kernel
    return replace(kernel, warps=8, constants={**kernel.constants, "BK": 32})


@dataclass(frozen=True)
class Launch:
    """A kernel with its grid and its arguments: tensor names, or the number T."""

    kernel: str
    file: str
    grid: tuple[int, int]
    arguments: tuple[str | int, ...]


@dataclass(frozen=True)
class KernelPlan:
    """The five kernels for one shape, one dtype of x and one tile."""

    shape: MoEShape
    x_type: str
    tile: Tile

    def __post_init__(self) -> None:
        if self.x_type not in X_TYPES:
            raise InputError(f"fused experts: x is {' or '.join(X_TYPES)}, not {self.x_type}")

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels in launch order."""
        shape, tile = self.shape, self.tile
        D, E, I, K = shape.width, shape.experts, shape.expert_width, shape.active
        BE = power_of_two(E)
        BT = tile.tokens
        BD = min(power_of_two(D), max(16, 8192 // (BT * BE)))
        columns = min(power_of_two(D), 4096 // BT, 512)
        blocks = {"factor": K, "divisor": tile.rows, "extra": E}
        product = {"BM": tile.rows, "BN": tile.columns, "BK": tile.inner}
        made = (
            ("route", f"route-{self.x_type}-{tile.name}", {"D": D, "E": E, "K": K, "BT": BT, "BD": BD, "BE": BE}, Grid(1, BT), 8, 1),
            ("sort", f"sort-{tile.name}", {"E": E, "K": K, "BM": tile.rows, "BA": max(32, 4096 // BE), "BE": BE}, Grid(extra=E), 4, 1),
            (
                "up",
                f"up-{self.x_type}-{tile.name}",
                {"D": D, "I": I, "K": K, "GATED": int(shape.gated), **product},
                Grid(**blocks, y=cdiv(I, tile.columns)),
                tile.warps,
                tile.stages,
            ),
            ("down", f"down-{tile.name}", {"D": D, "I": I, **product}, Grid(**blocks, y=cdiv(D, tile.columns)), tile.warps, tile.stages),
            ("combine", f"combine-{tile.name}", {"D": D, "K": K, "BT": BT, "BD": columns}, Grid(1, BT, y=cdiv(D, columns)), 4, 1),
        )
        return tuple(Kernel(name, file, self._arguments(name), *rest) for name, file, *rest in made)  # type: ignore[arg-type]

    def _arguments(self, kernel: str) -> tuple[tuple[str, str], ...]:
        """Return (name, Triton type) of a kernel's arguments; ``T`` is the only number."""
        x = ("x", f"*{self.x_type}")
        experts, gates = ("experts", "*i32"), ("gates", "*fp32")
        order, blocks, hidden, parts = ("order", "*i32"), ("blocks", "*i32"), ("hidden", "*fp16"), ("parts", "*fp16")
        T = ("T", "i32")
        return {
            "route": (x, ("router_weight", "*fp32"), ("router_bias", "*fp32"), T, experts, gates),
            "sort": (experts, T, order, blocks),
            "up": (x, order, blocks, ("up_weight", "*fp16"), ("up_bias", "*fp16"), hidden),
            "down": (hidden, order, blocks, ("down_weight", "*fp16"), ("down_bias", "*fp16"), parts),
            "combine": (parts, gates, T, ("y", "*fp16")),
        }[kernel]

    def workspace(self, tokens: int) -> tuple[dict[str, int], int]:
        """Return aligned byte offsets of the intermediate tensors for T tokens, and the total size in bytes."""
        A = tokens * self.shape.active
        sizes = {
            "experts": 4 * A,
            "gates": 4 * A,
            "order": 4 * A,
            "blocks": 16 * self.shape.blocks(tokens, self.tile.rows),
            "hidden": 2 * A * self.shape.expert_width,
            "parts": 2 * A * self.shape.width,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += cdiv(size, ALIGNMENT) * ALIGNMENT
        return offsets, end

    def launches(self, tokens: int) -> list[Launch]:
        """Return the launches for T ≥ 1 tokens, in order, for one stream."""
        return [
            Launch(
                kernel.name,
                kernel.file,
                kernel.grid.of(tokens),
                tuple(tokens if name == "T" else name for name, _ in kernel.arguments),
            )
            for kernel in self.kernels
        ]


def workspace_bytes(shape: MoEShape, tokens: int) -> int:
    """Return a workspace size in bytes that suffices for up to ``tokens`` tokens with either tile."""
    return max(KernelPlan(shape, "fp16", tile).workspace(tokens)[1] for tile in TILES.values())
