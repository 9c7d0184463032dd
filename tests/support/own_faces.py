"""A small data set as people have them: PNG files, captions and conversations, no slots; and the same in every form of table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from export.data.render.renderer import sample_face
from export.data.text.captions import caption
from export.data.text.questions import describe_question, questions


def write_faces(folder: Path, count: int, size: int = 128) -> list[dict[str, Any]]:
    """Write rendered faces as ``pictures/0000.png`` …; return a row with caption and conversation for each."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        face = sample_face(5_000_000 + 2 * number, "train", size, with_regions=False)
        name = f"pictures/{number:04d}.png"
        Image.fromarray(face.image).save(folder / name)
        turns: list[dict[str, str]] = []
        for item in (describe_question(face.slots, rng), *questions(face.slots, rng, 3)):
            turns += [{"from": "human", "value": f"<image>\n{item.question}"}, {"from": "gpt", "value": item.answer}]
        rows.append({"photo": name, "title": caption(face.slots, rng).text, "conversations": turns})
    return rows


def write_tables(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Path]:
    """Write the rows as JSONL, LLaVA JSON, CSV, parquet and tar by other people's tools; return the file of each form."""
    import pandas as pd

    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    llava = [{"id": str(number), "image": row["photo"], **row} for number, row in enumerate(rows)]
    (folder / "llava.json").write_text(json.dumps([{k: v for k, v in row.items() if k != "photo"} for row in llava]), encoding="utf-8")
    table = pd.DataFrame(rows)
    flat = table.assign(conversations=[json.dumps(turns) for turns in table["conversations"]])
    flat.to_csv(folder / "rows.csv", index=False)
    embedded = table.assign(photo=[(folder / name).read_bytes() for name in table["photo"]])
    embedded.to_parquet(folder / "rows.parquet", row_group_size=5)
    return {
        "jsonl": folder / "rows.jsonl",
        "json": folder / "llava.json",
        "csv": folder / "rows.csv",
        "parquet": folder / "rows.parquet",
        "tar": write_tar(folder, rows),
    }


def write_tar(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a WebDataset shard with the program ``tar``."""
    loose, names = folder / "loose", []
    loose.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        (loose / f"{number:04d}.png").write_bytes((folder / row["photo"]).read_bytes())
        (loose / f"{number:04d}.json").write_text(json.dumps({"title": row["title"], "conversations": row["conversations"]}))
        names += [f"{number:04d}.json", f"{number:04d}.png"]
    subprocess.run(["tar", "-C", str(loose), "-cf", str(folder / "shard.tar"), *names], check=True)
    return folder / "shard.tar"
