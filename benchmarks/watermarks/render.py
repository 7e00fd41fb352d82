"""Render the overlays of the watermark benchmark: python benchmarks/watermarks/render.py.

Writes one 8-bit grey PNG a text beside this file: how much of each pixel the ink covers, 0 to 255,
about 216 pixels wide. The fonts are Noto Sans CJK (SIL Open Font License 1.1) as Debian packages
them: `apt-get install fonts-noto-cjk`. The license is of the font; pictures of text set in it are
free of it (OFL FAQ 1.1.1).
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
SIMPLIFIED = 2
"""Which of the collection's faces: Japanese, Korean, simplified, traditional Chinese, ..."""

WIDTH = 216

TEXTS = {
    "cjk_0": "捷径捷径捷径",  # "shortcut" three times, the phrase of arXiv 2212.04825
    "cjk_1": "请勿转载图片",  # please do not republish the picture
    "cjk_2": "摄影作品展示",  # photographic works on display
    "cjk_3": "样图仅供参考",  # a sample, for reference only
    "cjk_4": "高清图片素材",  # high-resolution stock pictures
    "cjk_5": "网络图片来源",  # picture taken from the net
    "latin_0": "PHOTOS",
    "latin_1": "SAMPLE",
    "thin_0": "do not copy this",
    "thin_1": "stock photograph",
    "digits_0": "382915",
    "digits_1": "740628",
}
"""Six characters each, but for the thin words: more and smaller letters across the same width."""


def ink(text: str, size: int) -> Image.Image:
    """Return the text as ink coverage."""
    font = ImageFont.truetype(str(FONT), size, index=SIMPLIFIED)
    left, top, right, bottom = map(int, font.getbbox(text))
    mask = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


def fitted(text: str) -> Image.Image:
    """Return the text in the largest size that is no wider than `WIDTH`."""
    size = 8
    while ink(text, size + 1).width <= WIDTH:
        size += 1
    return ink(text, size)


def main() -> None:
    """Write one file a text."""
    for name, text in TEXTS.items():
        path = Path(__file__).parent / f"{name}.png"
        fitted(text).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size} bytes, {text}")


if __name__ == "__main__":
    main()
