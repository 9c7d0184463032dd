"""Clients of ``f2edge serve``: synchronous and asyncio."""

from f2edge.client.aio import AsyncClient
from f2edge.client.sync import Client

__all__ = ["AsyncClient", "Client"]
