"""The contracts: a model's shape, its tokens, the attribute schema, the graphs of a bundle, and what a pass costs."""
