"""Who asks: three access tokens of two users, and what the real Hub answers to those it refuses."""

from dataclasses import dataclass

from hub_http import HubError, Request


@dataclass(frozen=True)
class User:
    """A user as one of their tokens shows them."""

    name: str
    role: str  # "write" or "read"


TOKENS = {
    "hf_alice": User("alice", "write"),
    "hf_alice-read": User("alice", "read"),
    "hf_bob": User("bob", "write"),
}


def user_of(request: Request) -> User | None:
    """Return who sent a request, None for anonymous ones.

    Raises:
        HubError: 401 for an unknown token. It has no `X-Error-Code`, and the client tells it from
            a missing repository by the message.
    """
    header = request.headers.get("Authorization", "")
    if not header:
        return None
    user = TOKENS.get(header.removeprefix("Bearer "))
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def signed_in(request: Request) -> User:
    """Return who sent a request.

    Raises:
        HubError: 401 for anonymous requests.
    """
    user = user_of(request)
    if user is None:
        raise HubError(401, "Invalid username or password.")
    return user
