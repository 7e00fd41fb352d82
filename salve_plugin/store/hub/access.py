"""Which Hub, and with whose token: the only place that tokens pass through."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from salve_plugin.errors import InputError
from salve_plugin.store.json import shortened

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Token = str | bool | None
"""A token; True or None for the one that the user has logged in with, False for none."""


@dataclass(frozen=True)
class Access:
    """A Hub and the right to use it.

    Attributes:
        endpoint: the Hub's address; None for the user's own (`HF_ENDPOINT`, else huggingface.co).
        token: never shown, logged or put into a message. The token that the user has logged in
            with belongs to the user's own Hub: to another endpoint it goes only with `token=True`.

    Raises:
        InputError: if the token could not be sent, or the endpoint is not an http address.
    """

    endpoint: str | None = None
    token: Token = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check what would otherwise fail in the client with the token in the message."""
        token, endpoint = self.token, self.endpoint
        sendable = isinstance(token, str) and re.fullmatch(r"[!-~]+", token)
        if token is not None and not isinstance(token, bool) and not sendable:
            raise InputError(
                "the token is empty or holds spaces, line breaks or letters that cannot be sent, "
                "or is no text; pass it exactly as the Hub shows it"
            )
        if endpoint is not None and not (
            isinstance(endpoint, str) and re.fullmatch(r"https?://[^\s/@]+[^\s@]*", endpoint)
        ):
            # What is in front of an @ may hold a password.
            shown = shortened(re.sub(r".*@", "...@", str(endpoint), flags=re.DOTALL), 100)
            raise InputError(
                f"endpoint {shown} is not an address such as 'https://huggingface.co' (without "
                "user names)"
            )

    def client(self) -> "HfApi":
        """Return the Hub client for this access."""
        from huggingface_hub import HfApi, constants

        # As the client does with HF_ENDPOINT: paths are joined to it with a slash of their own.
        endpoint = None if self.endpoint is None else self.endpoint.rstrip("/")
        foreign = endpoint is not None and endpoint != constants.ENDPOINT
        # None would make the client send the token of the user's own Hub to this one.
        token = False if foreign and self.token is None else self.token
        return HfApi(endpoint=endpoint, token=token, library_name="salve_plugin")
