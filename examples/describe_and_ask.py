"""Describe a face and answer questions about it, printing words as they arrive.

$ python examples/describe_and_ask.py face.png "what color is the hair?" "does the person wear glasses?"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from f2edge import FacePipeline, load_image


def show(piece: str) -> None:
    """Print a piece of text without a line break."""
    print(piece, end="", flush=True)


def main() -> None:
    """Print the description, then each question with its answer."""
    parser = argparse.ArgumentParser(description="Describe a face and answer questions about it.")
    parser.add_argument("image", type=Path)
    parser.add_argument("questions", nargs="*")
    arguments = parser.parse_args()

    pipeline = FacePipeline.load("nano")
    face = load_image(arguments.image)
    pipeline.describe(face, on_token=show)
    print()
    for question in arguments.questions:
        answer = pipeline.ask(face, question)  # the face is encoded once for all questions
        print(f"{question} {answer.text}  ({answer.first_token_ms:.0f} ms to the first token)")


if __name__ == "__main__":
    main()
