"""Data as classic scripts: what a page that was opened from disk can load, and nothing else.

A page from `file://` may neither fetch files nor load modules, but it may load scripts. So each
piece of data is one call, `atlas.provide(key, value)`, in a file of its own. Numbers are little-
endian arrays in base64; whatever text comes from elsewhere, names of classes and files, is escaped
so that it ends neither a script nor a line.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "i8": torch.int8, "i32": torch.int32, "f32": torch.float32, "f64": torch.float64,
}  # fmt: skip
"""Types of arrays by the name that the page knows them by."""

_ESCAPES = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"}
"""What could end a script or begin a comment. All that is not ASCII, two line ends of Unicode that
JSON allows in strings among it, `json.dumps` escapes already."""


def array(values: Tensor, dtype: str) -> dict[str, str]:
    """Return numbers as the page reads them: `{"type": "f32", "data": base64}`, flattened.

    >>> array(torch.tensor([1, -1]), "i8")
    {'type': 'i8', 'data': 'Af8='}
    """
    plain = values.detach().cpu().contiguous().to(DTYPES[dtype]).numpy()
    # Whatever this machine has, the page reads little-endian numbers.
    octets = plain.astype(plain.dtype.newbyteorder("<")).tobytes()
    return {"type": dtype, "data": base64.b64encode(octets).decode()}


def data_url(picture: bytes) -> str:
    """Return a PNG or JPEG file as an address that holds it."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def script(key: str, value: Mapping[str, Any]) -> bytes:
    r"""Return the script that provides a value, the same bytes for equal values.

    >>> print(script("a", {"name": "</script>"}).decode(), end="")
    atlas.provide("a",{"name":"\u003c/script\u003e"});

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return f"atlas.provide({json.dumps(key)},{text.translate(_ESCAPES)});\n".encode()


def provided(key: str, content: bytes) -> bytes:
    r"""Return the value in such a script, as the JSON that it is written in.

    >>> provided("a", script("a", {"name": "</script>"})).decode()
    '{"name":"\\u003c/script\\u003e"}'
    """
    return content[len(f"atlas.provide({json.dumps(key)},") : -len(");\n")]


def quantized(values: Tensor) -> tuple[Tensor, float]:
    """Return values as whole numbers from -127 to 127, and what one of them is worth."""
    most = float(values.abs().max()) if values.numel() else 0.0
    if not most:
        return torch.zeros_like(values, dtype=torch.int8), 0.0
    # In float64: of a map of tiny values, 127 over the largest is beyond float32.
    return (values.double() * (127 / most)).round().to(torch.int8), most / 127
