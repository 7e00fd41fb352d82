"""The pictures of an artifact: PNG files whose names mark them as the artifact's own."""

from collections.abc import Mapping

from salve_plugin.errors import InputError
from salve_plugin.store.record import check_plain_name
from salve_plugin.store.seal import MAX_PICTURE_BYTES

MAX_PICTURES = 64
PNG_START = b"\x89PNG\r\n\x1a\n"


def picture_file(name: str) -> str:
    """Return the file name of a picture; the prefix marks the file as the artifact's own."""
    return f"picture_{name}.png"


def picture_name(file: str) -> str:
    """Return the name of a picture from that of its file."""
    return file.removeprefix("picture_").removesuffix(".png")


def check_pictures(pictures: Mapping[str, bytes]) -> None:
    """Raise unless these are pictures with plain names, and not too many of them.

    Raises:
        InputError: naming the picture that cannot be used.
    """
    if len(pictures) > MAX_PICTURES:
        raise InputError(
            f"{len(pictures)} pictures are more than the {MAX_PICTURES} of an artifact"
        )
    for name, data in pictures.items():
        check_plain_name(name, "picture")
        if not isinstance(data, bytes):
            raise InputError(
                f"picture '{name}' is a {type(data).__name__}; expected the bytes of a PNG file"
            )
        # The signature is enough: no picture is decoded here, it is shown by others.
        if not data.startswith(PNG_START) or len(data) > MAX_PICTURE_BYTES:
            raise InputError(
                f"picture '{name}' is not a PNG file of at most {MAX_PICTURE_BYTES} bytes"
            )
