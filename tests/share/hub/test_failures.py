"""Every error of the Hub client becomes one of ours; errors of the program do not."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from huggingface_hub import errors

from salve_plugin.errors import HubError, InputError, SalveError, WriteError
from salve_plugin.store.hub.failures import translated
from salve_plugin.store.hub.patience import MAX_WAIT, WAITS, patiently


def answer(status: int, **headers: str) -> httpx2.Response:
    request = httpx2.Request("GET", "http://hub/api")
    return httpx2.Response(status, headers=headers, request=request)


@contextmanager
def caused_by(cause: Exception) -> Iterator[None]:
    """Fail as the client does when it gives up: with another error, because of this one."""
    raise errors.LocalEntryNotFoundError("cannot find the file") from cause
    yield


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (errors.GatedRepoError("", response=answer(403)), "gated", 403),
        (errors.RepositoryNotFoundError("", response=answer(404)), "not_found", 404),
        (errors.RevisionNotFoundError("", response=answer(404)), "no_revision", 404),
        (errors.RemoteEntryNotFoundError("", response=answer(404)), "no_file", 404),
        (errors.BadRequestError("", response=answer(400)), "rejected", 400),
        (errors.HfHubHTTPError("", response=answer(401)), "unauthorized", 401),
        (errors.HfHubHTTPError("", response=answer(403)), "forbidden", 403),
        (errors.HfHubHTTPError("", response=answer(408)), "transfer", 408),
        (errors.HfHubHTTPError("", response=answer(409)), "conflict", 409),
        (errors.HfHubHTTPError("", response=answer(412)), "conflict", 412),
        (errors.HfHubHTTPError("", response=answer(413)), "rejected", 413),
        (errors.HfHubHTTPError("", response=answer(429)), "rate_limited", 429),
        (errors.HfHubHTTPError("", response=answer(502)), "server", 502),
        (errors.OfflineModeIsEnabled(""), "offline", None),
        (errors.LocalEntryNotFoundError(""), "not_cached", None),
        (httpx2.ConnectError("refused"), "unreachable", None),
        (httpx2.ReadTimeout("slow"), "unreachable", None),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "unreachable", None),
        (TimeoutError("slow"), "unreachable", None),
        (OSError("Consistency check failed"), "transfer", None),
        (RuntimeError("Data processing error"), "transfer", None),
        (KeyError("commitOid"), "server", None),
    ],
)
def test_each_error_keeps_its_reason_also_behind_the_clients_own_words(
    error: Exception, reason: str, status: int | None
) -> None:
    with pytest.raises(HubError, match="cannot pull me/edit") as caught, translated("pull me/edit"):
        raise error
    assert (caught.value.reason, caught.value.status) == (reason, status)
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, OSError)
    with pytest.raises(HubError) as caught, translated("pull me/edit"), caused_by(error):
        pass
    assert (caught.value.reason, caught.value.status) == (reason, status)


def test_a_remedy_is_one_for_reading_and_for_pushing() -> None:
    cases: list[tuple[Exception, str]] = [
        (errors.HfHubHTTPError("", response=answer(403)), "may read this repository, or write to"),
        (errors.HfHubHTTPError("", response=answer(405)), "refused the request"),
        (errors.OfflineModeIsEnabled(""), "unset HF_HUB_OFFLINE: without a network"),
        (OSError(errno.EROFS, "no", "/cache/blob"), "cache_dir .HF_HUB_CACHE for a push"),
    ]
    for error, remedy in cases:
        with pytest.raises(SalveError, match=remedy), translated("do it"):
            raise error


def test_what_the_disk_refuses_is_a_write_error() -> None:
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EFBIG):
        with pytest.raises(WriteError, match=r"\(/cache/blob\)\. Free"), translated("pull"):
            raise OSError(number, "no", "/cache/blob")


def test_our_own_errors_and_interrupts_pass_unchanged() -> None:
    for error in (InputError("bad"), KeyboardInterrupt(), MemoryError()):
        with pytest.raises(type(error)) as caught, translated("pull me/edit"):
            raise error
        assert caught.value is error


def test_harmless_requests_are_repeated_and_the_hubs_wish_is_followed(waits: list[float]) -> None:
    def run(*failures: Exception) -> str:
        left = list(failures)

        def request() -> str:
            if left:
                raise left.pop(0)
            return "done"

        return patiently("look", request)

    busy = errors.HfHubHTTPError("", response=answer(503))
    assert run(busy, httpx2.ConnectError("")) == "done"
    assert waits == list(WAITS)
    waits.clear()
    limited = [
        errors.HfHubHTTPError("", response=answer(429, **{"Retry-After": wait}))
        for wait in ("7", "3600")
    ]
    assert run(*limited) == "done"
    assert waits == [7, MAX_WAIT]
    waits.clear()
    with pytest.raises(HubError, match="the Hub has a problem"):
        run(busy, busy, busy)
    assert len(waits) == 2
    waits.clear()
    with pytest.raises(SalveError):
        run(errors.GatedRepoError("", response=answer(403)))
    assert waits == []
