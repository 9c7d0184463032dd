"""Contracts: model configuration, token layout, attribute schema, graph signatures and FLOP counts."""
