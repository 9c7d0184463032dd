"""Captions, questions and the text tokenizer."""
