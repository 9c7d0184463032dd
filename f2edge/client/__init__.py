"""Synchronous and asyncio clients of ``f2edge serve``."""

from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client

__all__ = ["AsyncClient", "Client"]
