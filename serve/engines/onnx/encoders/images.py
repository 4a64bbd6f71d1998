"""The tower for images of a model of images and texts: from the bytes that a client sent to vectors."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from everlearn.cpu_features import make_exact
from everlearn.errors import Corrupt, InvalidInput
from everlearn.images import MAX_PIXELS, from_base64, from_data_url, pixel_count, pixels
from serve.engines.onnx.encoders.batches import BATCH_TOKENS, SharedBatches
from serve.engines.onnx.session import open_session

GRAPH, OUTPUT = "vision_model.onnx", "image_embeds"

Image = NDArray[np.uint8]
"""(size, size, 3): red, green, blue."""


class ImageModel(SharedBatches[Image, NDArray[np.float32]]):
    """One graph, whose vectors are float32 (dim,).

    ``tokens``: what an image counts as, its patches and the one that stands for all. ``size``: pixels of a side.
    """

    def __init__(self, bundle: Path, *, threads: int, queue_limit: int) -> None:
        super().__init__(BATCH_TOKENS, queue_limit)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        make_exact(options)
        self.session = open_session(bundle / GRAPH, bundle, options)
        try:
            vision = json.loads((bundle / "config.json").read_bytes())["vision_config"]
            said = json.loads((bundle / "preprocessor_config.json").read_bytes())
            self.size = int(vision["image_size"])
            self.tokens = (self.size // int(vision["patch_size"])) ** 2 + 1
            self.mean, self.std = (np.array(said[f"image_{name}"], np.float32) for name in ("mean", "std"))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(
                f"{bundle.name}: config.json and preprocessor_config.json do not say how an image is read ({error!r})"
            ) from None

    def _size(self, item: Image) -> int:
        return self.tokens

    def _run(self, batch: list[Image]) -> list[NDArray[np.float32]]:
        scaled = np.stack(batch).astype(np.float32) / 255  # (batch, size, size, 3)
        feeds = {"pixel_values": ((scaled - self.mean) / self.std).transpose(0, 3, 1, 2)}
        (vectors,) = self.session.run([OUTPUT], feeds)
        return list(np.asarray(vectors))


def contents_of(images: Sequence[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Each image's bytes, from its name in the request and how it was sent; none is decoded yet.

    Raises InvalidInput for what is none, and where all together have more than MAX_PIXELS.
    """
    contents: list[tuple[str, bytes]] = []
    total = 0
    for name, sent in images:
        with named(name):
            content = from_data_url(sent, name) if sent[:5].lower() == "data:" else from_base64(sent, name)
            total += pixel_count(content, name)
            if total > MAX_PIXELS:
                raise InvalidInput(
                    f"{name}: the images up to here have {total} pixels; at most {MAX_PIXELS} per request"
                )
        contents.append((name, content))
    return contents


def decoded(contents: Sequence[tuple[str, bytes]], size: int) -> list[Image]:
    """Each as the model sees it. Raises InvalidInput for a broken one."""
    images: list[Image] = []
    for name, content in contents:
        with named(name):
            images.append(pixels(content, size, name))
    return images


@contextmanager
def named(name: str) -> Generator[None]:
    """Says of what is refused which field of the request it was."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(error.message, param=name) from None
