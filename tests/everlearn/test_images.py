"""Images from strangers: refused before they are decoded where they are too large, and seen as CLIP sees them."""

import base64
import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from everlearn.errors import InvalidInput
from everlearn.images import MAX_BYTES, from_data_url, pixels, read_image


def picture(width: int = 90, height: int = 60, mode: str = "RGB") -> Image.Image:
    """A red disc left of a blue square, on green."""
    image = Image.new("RGB", (width, height), (20, 160, 40))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, width // 2 - 5, height - 5), fill=(220, 30, 30))
    draw.rectangle((width // 2 + 5, 10, width - 10, height - 10), fill=(30, 60, 220))
    return image.convert(mode)


def written(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (33, 32), (32, 32), (40, 150), (500, 41)])
def test_numbers_are_those_of_clips_own_preprocessing(shape: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = picture(*shape)
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=size, do_rescale=False, do_normalize=False
    )
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])  # (3, size, size)

    assert np.abs(pixels(written(image), 32).astype(float) - theirs.transpose(1, 2, 0)).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        written(picture(), "WEBP", lossless=True),
        written(picture(), "BMP"),
        written(picture().quantize(64)),
        written(picture(mode="RGBA")),
        written(picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (90, 60))]),
        written(picture(mode="CMYK"), "JPEG", quality=95),
    ],
    ids=["webp", "bmp", "palette", "alpha", "animation", "cmyk"],
)
def test_one_picture_is_nearly_the_same_in_every_form(content: bytes) -> None:
    expected = pixels(written(picture()), 32).astype(float)
    assert np.abs(pixels(content, 32) - expected).mean() < 6


def test_a_phones_photograph_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    turned = written(picture().rotate(90, expand=True), "JPEG", quality=95, exif=exif.tobytes())
    assert np.abs(pixels(turned, 32).astype(float) - pixels(written(picture()), 32)).mean() < 6


def test_what_is_transparent_is_white_and_sixteen_bits_keep_their_greys() -> None:
    assert pixels(written(Image.new("RGBA", (40, 40), (255, 0, 0, 0))), 32).min() == 255
    ramp = (np.arange(64, dtype=np.uint16)[None].repeat(64, 0) * 1024).astype(np.uint16)
    seen = pixels(written(Image.fromarray(ramp)), 32)
    assert seen.min() < 20 and seen.max() > 230 and seen[0, 16, 0] < seen[0, 24, 0]


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes whose head says so many pixels."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hello, world", "is no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no image"),
        (bomb(50_000, 50_000), "pixels"),
        (bomb(9000, 8000), "pixels"),
        (bomb(6000, 2), "a strip"),
        (bomb(0, 5), "is "),
        (written(picture())[:200], "is broken"),
        (written(picture(), "JPEG")[:500], "is broken"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused_with_where_it_was(content: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        pixels(content, 32, "pairs.jsonl:7")
    assert refused.value.message.startswith("pairs.jsonl:7: ") and said in refused.value.message


@given(st.binary(max_size=300), st.integers(0, 600), st.integers(0, 255))
def test_a_broken_byte_is_an_image_or_a_refusal(tail: bytes, place: int, value: int) -> None:
    content = bytearray(written(picture(), "GIF") + tail)
    content[place % len(content)] = value
    with suppress(InvalidInput):
        assert pixels(bytes(content), 16).shape == (16, 16, 3)


def test_data_urls_and_files_are_bounded(tmp_path: Path) -> None:
    content = written(picture())
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    assert from_data_url(url) == content
    for wrong in ("https://host/a.png", "data:text/html;base64,AAAA", url + "*", "data:image/png,abc", ""):
        with pytest.raises(InvalidInput):
            from_data_url(wrong)
    with pytest.raises(InvalidInput, match="20 MiB"):
        from_data_url("data:image/png;base64," + "A" * (MAX_BYTES * 4 // 3 + 8))
    (tmp_path / "large.png").write_bytes(b"\0" * (MAX_BYTES + 1))
    with pytest.raises(InvalidInput, match="20 MiB"):
        read_image(tmp_path / "large.png")
