"""Captions, questions, their grammar, and the text tokenizer."""
