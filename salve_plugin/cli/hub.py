"""`salve push`, `pull` and `verify`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from salve_plugin.cli.output import show_json, show_note, show_table
from salve_plugin.cli.overwriting import check_folder, save
from salve_plugin.cli.shared import SharedItem, find
from salve_plugin.store.card import CARD_FILE
from salve_plugin.store.hub.push import How
from salve_plugin.store.source import Where


def verify(source: str, where: Where, *, as_json: bool) -> None:
    """Check every byte of what lies at a place and print its digest."""
    with _bars(shown=not as_json):
        item = find(source, **where)
        item.check_models()
    result = {
        "kind": item.kind,
        "digest": item.digest,
        "card": item.description.get("card"),
        "commit": _commit(item),
    }
    _show(result, "verified: every byte is as it was written", as_json=as_json)


def pull(repo_id: str, where: Where, out: Path, *, force: bool, as_json: bool) -> None:
    """Get what lies in a repository, verify it and write it into a folder."""
    check_folder(out)
    with _bars(shown=not as_json):
        item = find(repo_id, **where)
    save(item.shared, out, force=force)
    result: dict[str, object] = {
        "kind": item.kind,
        "folder": str(out),
        "digest": item.digest,
        "card": item.description.get("card"),
        "commit": _commit(item),
    }
    origin = item.source.origin
    if origin is not None:
        result |= {"resolved": origin.resolved, "from_cache": origin.from_cache}
    _show(result, "pulled", as_json=as_json)
    _say_of_card(item, as_json=as_json)


def push(folder: Path, repo_id: str, how: How, *, as_json: bool) -> None:
    """Verify what lies in a folder and put it on the Hub in one commit."""
    item = find(folder)
    with _bars(shown=not as_json):
        pushed = item.shared.push_to_hub(repo_id, **how)
    result: dict[str, object] = {
        "kind": item.kind,
        "digest": item.digest,
        "card": item.description.get("card"),
        "repo_id": pushed.reference.repo_id,
        "commit": pushed.reference.commit,
        "pull_request": pushed.pull_request,
        "tag": pushed.tag,
        "created": pushed.created,
        "url": pushed.url,
    }
    _show(result, "pushed" if pushed.created else "already there", as_json=as_json)
    _say_of_card(item, as_json=as_json)


def _say_of_card(item: SharedItem, *, as_json: bool) -> None:
    """Say that people's text stays where it is: nobody may think that it came along."""
    if item.description.get("card") == "edited" and not as_json:
        show_note(
            f"{CARD_FILE} of {item.source.name} was edited. Its text stays there: at the other "
            "place it is written from the manifest, or that which is there is kept."
        )


def _commit(item: SharedItem) -> str | None:
    origin = item.source.origin
    return None if origin is None else origin.reference.commit


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Let the Hub client draw its progress bars on standard error, or not."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # What the user has switched off already must be off afterwards, too.
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _show(result: Mapping[str, object], title: str, *, as_json: bool) -> None:
    if as_json:
        show_json(result)
        return
    rows = [(name, value) for name, value in result.items() if value is not None]
    show_table(title, ("what", "value"), rows)
