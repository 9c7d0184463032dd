"""Packages of the wheel: the runtime, and beside it the tools of its extras, which a checkout has as top-level folders."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

TOOLS = [name for name in ("export", "engines", "bench") if Path(name).is_dir()]

tools = [package for name in TOOLS for package in find_packages(include=[name, f"{name}.*"])]
setup(
    packages=[*find_packages(include=["f2edge", "f2edge.*", "f2edge_tools"]), *(f"f2edge_tools.{package}" for package in tools)],
    package_dir={f"f2edge_tools.{name}": name for name in TOOLS},
)
