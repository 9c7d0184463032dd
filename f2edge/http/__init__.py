"""``f2edge serve --http``: REST, server-sent events and the calls of OpenAI's clients, beside gRPC and on the same engine.

A request is translated into the message of ``f2edge.v1`` that a gRPC client would have sent, and handed to the same handlers
(:mod:`f2edge.server.rpc`): limits, deadlines, tokens, metrics, log lines and error texts exist once.

    f2edge serve --http 127.0.0.1:8080
"""
