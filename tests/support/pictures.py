"""Pictures that a small model learns to tell apart: forms of one colour on another, and what they are called."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("red", "green", "blue", "yellow", "black", "purple")
FORMS = ("circle", "square", "cross")


def picture(form: str, colour: str, ground: str, size: int = 24) -> Image.Image:
    image = Image.new("RGB", (size, size), ground)
    draw = ImageDraw.Draw(image)
    box = (size // 5, size // 5, size - size // 5, size - size // 5)
    if form == "circle":
        draw.ellipse(box, fill=colour)
    if form == "square":
        draw.rectangle(box, fill=colour)
    if form == "cross":
        draw.line((box[0], box[1], box[2], box[3]), fill=colour, width=size // 5)
        draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=size // 5)
    return image


def write_pictures(folder: Path, name: str = "metadata.jsonl") -> Path:
    """90 pictures as Hugging Face's image folders have them, and the file that says what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    for form in FORMS:
        for colour in COLOURS:
            for ground in COLOURS:
                if colour == ground:
                    continue
                file = f"{form}-{colour}-{ground}.png"
                picture(form, colour, ground).save(folder / file)
                said = {"file_name": file, "text": f"a {colour} {form} on {ground} ground"}
                lines.append(json.dumps(said) + "\n")
    (folder / name).write_text("".join(lines))
    return folder / name
