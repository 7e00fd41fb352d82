"""Pushing files in one commit that is made once, or not at all, or told about as unknown."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from salve_plugin.errors import HubConflictError, HubError, InputError
from salve_plugin.store.hub.access import Token
from salve_plugin.store.hub.address import DEFAULT_REVISION, Address, HubFolder, check_revision
from salve_plugin.store.hub.failures import TRANSIENT, translated
from salve_plugin.store.hub.head import ExistingCommit
from salve_plugin.store.hub.patience import WAITS, patiently, pause
from salve_plugin.store.hub.reconcile import Landed, landed, open_pull_request
from salve_plugin.store.hub.staged import Staged
from salve_plugin.store.hub.tags import check_tag, set_tag
from salve_plugin.store.json import shortened
from salve_plugin.store.place import Existing, FileChange
from salve_plugin.store.reference import Reference

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class How(TypedDict, total=False):
    """Further arguments of everything that pushes, all optional.

    Attributes:
        subfolder: of the repository, so that it can hold several things.
        revision: branch to commit to, by default `main`.
        private: whether a new repository is private. If the repository exists and is not what was
            asked for, nothing is pushed.
        token: with write access; by default the one that the user has logged in with.
        commit_message: title of the commit.
        create_pr: make a pull request instead of a commit to the branch.
        tag: name for the commit; a tag is never moved.
        endpoint: address of the Hub, by default the client's (`HF_ENDPOINT`).
    """

    subfolder: str | None
    revision: str | None
    private: bool | None
    token: Token
    commit_message: str | None
    create_pr: bool
    tag: str | None
    endpoint: str | None


@dataclass(frozen=True)
class Destination(HubFolder):
    """Where to push and how, see `How`."""

    private: bool | None = None
    commit_message: str | None = None
    create_pr: bool = False
    tag: str | None = None

    def __post_init__(self) -> None:
        """Check the parts before anything is sent."""
        super().__post_init__()
        check_revision(self.tag)
        message = self.commit_message
        if message is not None and not (isinstance(message, str) and message.strip()):
            raise InputError(
                f"commit_message {shortened(message)} is empty or no text; leave it out for the "
                "default one"
            )
        if self.create_pr and self.revision not in (None, DEFAULT_REVISION):
            raise InputError(
                f"a pull request is made to '{DEFAULT_REVISION}', not to revision "
                f"'{self.revision}'; leave out revision or create_pr"
            )
        if self.create_pr and self.tag is not None:
            raise InputError(
                "the commit of a pull request gets no tag, it may never be merged; leave out tag "
                "or create_pr, and tag the merged commit"
            )

    @property
    def branch(self) -> str:
        """The branch to commit to."""
        return self.revision or DEFAULT_REVISION


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Attributes:
        reference: repository, commit and subfolder; pull with its commit to get the same bytes.
        url: the page of the commit, or of the pull request.
        pull_request: its revision, such as "refs/pr/1"; None without one.
        tag: the tag that names the commit; None without one.
        created: False if everything was there already and no commit was needed.
    """

    reference: Reference
    url: str
    pull_request: str | None = None
    tag: str | None = None
    created: bool = True


def push(target: Destination, plan: Callable[[Existing], FileChange], message: str) -> Pushed:
    """Make one commit with a change, on top of the branch's head and of nothing else.

    The repository is created if there is none. All files are hashed before anything is sent. The
    commit names the head as its parent, so that the Hub refuses it if somebody else committed
    meanwhile. After any failure the Hub is asked what it has before the outcome is reported. A
    call that is repeated after an error makes no second commit.

    Args:
        target: where to push.
        plan: returns the change, given what the head has in the target's subfolder.
        message: title of the commit, if the target has none.

    Raises:
        HubConflictError: if somebody else committed meanwhile, or the tag names another commit.
        HubError: if the Hub refused or cannot be reached; the message says whether the commit
            may have been made all the same.
        InputError: if the repository is public where `private=True` was asked for, or the reverse.
    """
    client = target.access.client()
    head = _head(client, target)
    address = Address(target.repo_id, head, target.subfolder, access=target.access)
    # What is planned is planned for this very commit, and the Hub takes it on top of no other.
    change = plan(ExistingCommit(address))
    staged = Staged.of(
        {address.path_of(name): content for name, content in change.files.items()},
        [address.path_of(name) for name in change.obsolete],
    )
    return _Push(client, target, staged, head, target.commit_message or message).made()


def _head(client: "HfApi", target: Destination) -> str:
    """Return the head of the branch; create the repository if there is none."""

    def ask() -> tuple[str | None, bool | None]:
        info = client.model_info(target.repo_id, revision=target.branch)
        return info.sha, info.private

    try:
        head, private = patiently(f"look at {target.repo_id}", ask)
    except HubError as error:
        if error.reason != "not_found" or target.create_pr:
            raise
        _create(client, target)
        head, private = patiently(f"look at {target.repo_id}", ask)
    if target.private is not None and private is not None and private != target.private:
        raise InputError(
            f"{target.repo_id} is {'private' if private else 'public'}, private={target.private} "
            "was asked for; nothing was pushed. Change the repository's settings, or leave out "
            "private"
        )
    if head is None:
        raise HubError(f"{target.repo_id} has no commit at '{target.branch}'", reason="server")
    return head


def _create(client: "HfApi", target: Destination) -> None:
    try:
        patiently(
            f"create the repository {target.repo_id}",
            lambda: client.create_repo(target.repo_id, private=target.private),
        )
    except HubError as error:
        if error.reason != "conflict":  # then it exists: the answer to an earlier try was lost
            raise


@dataclass(frozen=True)
class _Push:
    """One commit to be made on the head of a branch."""

    client: "HfApi"
    target: Destination
    staged: Staged
    head: str
    message: str

    def made(self) -> Pushed:
        """Make the commit and its tag, as far as they are not there; see `push`."""
        client, target = self.client, self.target
        check_tag(client, target.repo_id, target.tag, self.staged)
        # An earlier call may have got through although its caller saw an error: then nothing is
        # left to be done but the tag.
        doing = f"compare {target.repo_id} with what is to be pushed"
        there = patiently(doing, self._already)
        done = there or self._committed()
        if there is None:
            self._verify(done.commit)
        if target.tag is not None:
            set_tag(client, target.repo_id, target.tag, done.commit, self.staged)
        number = None if done.pull_request is None else done.pull_request.rpartition("/")[2]
        page = f"discussions/{number}" if number else f"commit/{done.commit}"
        return Pushed(
            Reference(target.repo_id, done.commit, target.subfolder),
            f"{client.endpoint}/{target.repo_id}/{page}",
            done.pull_request,
            target.tag,
            created=there is None,
        )

    def _already(self) -> Landed | None:
        """Return where the change is on the Hub, if an earlier call brought it there."""
        if self._is_in(self.head):
            return Landed(self.head)
        return self._pull_request() if self.target.create_pr else None

    def _pull_request(self) -> Landed | None:
        return open_pull_request(self.client, self.target.repo_id, self.staged, self.head)

    def _is_in(self, commit: str) -> bool:
        return self.staged.is_in(self.client, self.target.repo_id, commit)

    def _committed(self) -> Landed:
        """Make the commit; after a failure find out whether it was made before trying again."""
        doing = f"commit to '{self.target.branch}' of {self.target.repo_id}"
        for attempt in range(len(WAITS) + 1):
            try:
                with translated(doing):
                    return self._commit()
            except HubError as error:
                # An error says that no answer came, not that nothing happened. Trying again
                # without asking could make a second commit.
                outcome = self._outcome(error)
                if outcome is not None:
                    return outcome
                if error.reason not in TRANSIENT or attempt == len(WAITS):
                    raise
                pause(error, attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _commit(self) -> Landed:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        # Made anew for each attempt: the client writes its progress into them.
        adds = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in self.staged.files.items()
        ]
        info = self.client.create_commit(
            self.target.repo_id,
            [*adds, *map(CommitOperationDelete, self.staged.deleted)],
            commit_message=self.message,
            revision=self.target.branch,
            # The Hub refuses the commit if the branch has moved on: nobody's work is overwritten
            # unseen.
            parent_commit=self.head,
            create_pr=self.target.create_pr,
        )
        return Landed(info.oid, info.pr_revision)

    def _outcome(self, failure: HubError) -> Landed | None:
        """Return the commit if it was made in spite of the failure, None if it was not.

        Raises:
            HubConflictError: if somebody else's commit was made instead.
            HubError: if the Hub cannot be asked.
        """
        repo_id, branch = self.target.repo_id, self.target.branch

        def ask() -> Landed | None:
            if self.target.create_pr:
                return self._pull_request()
            return landed(self.client, repo_id, branch, self.staged, self.head)

        try:
            return patiently(f"look at '{branch}' of {repo_id}", ask)
        except HubConflictError:
            raise
        except HubError as error:
            raise HubError(
                f"{failure} Then {repo_id} could not be asked whether the commit was made all the "
                "same. Make the same call again: it makes no second commit",
                reason=failure.reason,
                status=failure.status,
            ) from error

    def _verify(self, commit: str) -> None:
        """Make sure that the commit holds what was staged, by the Hub's own digests."""
        repo_id = self.target.repo_id
        doing = f"compare commit {commit} of {repo_id} with what was pushed"
        if not patiently(doing, partial(self._is_in, commit)):
            raise HubError(
                f"commit {commit} of {repo_id} does not hold what was pushed; do not use it, push "
                "again",
                reason="transfer",
            )
