"""IResNet-100 as ArcFace networks have it (arXiv 1801.07698, 2004.04989), written from the papers' tables for comparison."""

from __future__ import annotations

from torch import Tensor, nn


class Block(nn.Module):
    """BN, 3x3, BN, PReLU, 3x3 with the stride, BN, beside a shortcut."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(given), nn.Conv2d(given, made, 3, 1, 1, bias=False), nn.BatchNorm2d(made), nn.PReLU(made),
            nn.Conv2d(made, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made),
        )  # fmt: skip
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(nn.Conv2d(given, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.body(x) + self.shortcut(x)
        return found


class IResNet(nn.Module):
    """Faces (B, 3, 112, 112) in [-1, 1] → (B, 512); ``depths`` (3, 13, 30, 3) is IResNet-100."""

    def __init__(self, depths: tuple[int, ...] = (3, 13, 30, 3)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)]
        given = 64
        for made, depth in zip((64, 128, 256, 512), depths, strict=True):
            for number in range(depth):
                layers.append(Block(given, made, 2 if number == 0 else 1))
                given = made
        self.trunk = nn.Sequential(*layers, nn.BatchNorm2d(512), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(512 * 49, 512), nn.BatchNorm1d(512))

    def forward(self, faces: Tensor) -> Tensor:
        found: Tensor = self.head(self.trunk(faces))
        return found
