"""``f2edge serve``: the engine behind gRPC, for people who did not start it.

One asyncio loop does the talking, one engine thread the thinking (:mod:`f2edge.engine.engine`), a small pool opens and writes pictures.
Every byte of a request is somebody else's: :mod:`.validation` checks it, :mod:`.pictures` opens images behind the guard, and
:mod:`.calls` turns whatever goes wrong into one documented status without a word about the inside.

    f2edge serve --port 8033
"""
