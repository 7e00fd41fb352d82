"""How wide a range of strengths an edit works in, and whether that holds in other contexts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float64, Int64
from msgspec import Meta
from torch import Tensor

from salve_plugin.control.comparing.multiples import at_multiple, does_nothing
from salve_plugin.control.comparing.responses import Data, Responses
from salve_plugin.control.edit import Edit
from salve_plugin.control.operators.base import real
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.discover.recording.labels import model_batches
from salve_plugin.errors import InputError
from salve_plugin.faces.one_line import one_line
from salve_plugin.hooks import HookedModel
from salve_plugin.integers import whole
from salve_plugin.kinds import several
from salve_plugin.modes import without_autocast
from salve_plugin.store.record import Name, Record

MULTIPLES = tuple(2 ** (step / 2) for step in range(-8, 9))
"""1/16 to 16 times an edit, two steps an octave."""

CLEAN = "clean"
"""The context of the images as they are."""

Logits = Float64[Tensor, "images classes"]
Judge = Callable[[Logits, Logits, Int64[Tensor, " images"]], tuple[float, float]]
"""Says of logits before and after an edit, and labels, how far it succeeded and what it harmed."""

Context = Callable[[Tensor], Tensor] | Data
"""A corruption of images (batch, ...), or the data as they are in that context."""

Share = Annotated[float, Meta(ge=0, le=1)]
Multiple = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class SuccessWindow(Record):
    """In which multiples one edit does what it is for, in one context.

    Attributes:
        edit: its name.
        site: where it acts.
        context: in which the images are.
        low: least multiple of the longest unbroken run that passes; None if none does.
        high: largest multiple of that run.
        octaves: log2(high / low): 3 means that the strength may be off by a factor of 8; 0 if one
            multiple alone passes, or none.
        open: whether the run reaches an end of the multiples that were tried, and may go on there.
        success: at each multiple that was tried.
        collateral: the same.
    """

    __repr__ = one_line

    edit: Name
    site: Name
    context: Name
    low: Multiple | None
    high: Multiple | None
    octaves: Annotated[float, Meta(ge=0)]
    open: bool
    success: tuple[Share, ...]
    collateral: tuple[Share, ...]


@dataclass(frozen=True)
class Fragility(Record):
    """Windows of success of edits over contexts.

    Attributes:
        windows: of every edit in every context, edits in the order given.
        multiples: of each edit that were tried, ascending.
        success: the least success that passes.
        collateral: the largest collateral that passes.
    """

    __repr__ = one_line

    windows: tuple[SuccessWindow, ...]
    multiples: tuple[Multiple, ...]
    success: Share
    collateral: Share

    def variation(self, edit: str) -> float | None:
        """Return the coefficient of variation of an edit's widths over contexts.

        The standard deviation (of these contexts, not of contexts at large) over the mean; None if
        no window has a width. Open windows count as they were cut off.

        Raises:
            InputError: if there is no edit of this name.
        """
        widths = torch.tensor([w.octaves for w in self.windows if w.edit == edit]).double()
        if not len(widths):
            raise InputError(
                f"no edit is named '{edit}'; there are {sorted({w.edit for w in self.windows})}"
            )
        mean = float(widths.mean())
        return float(widths.std(correction=0)) / mean if mean else None

    def table(self) -> str:
        """Return the windows as text, one a line, with each edit's variation over contexts."""
        lines = [["edit", "site", "context", "from", "to", "octaves", "variation"]]
        named = set()
        for w in self.windows:
            variation = None if w.edit in named else self.variation(w.edit)
            named.add(w.edit)
            low, high = ("-" if end is None else f"{end:.3g}" for end in (w.low, w.high))
            width = f"{'>= ' * w.open}{w.octaves:.1f}"
            spread = "" if variation is None else f"{variation:.2f}"
            lines.append([w.edit, w.site, w.context, low, high, width, spread])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                [
                    *map(str.ljust, line[:3], widths[:3]),
                    *map(str.rjust, line[3:], widths[3:]),
                ]
            ).rstrip()
            for line in lines
        ]
        rule = (
            f"multiples of each edit from {self.multiples[0]:.3g} to {self.multiples[-1]:.3g} at "
            f"which success >= {self.success:g} and collateral <= {self.collateral:g}; '>=' where "
            "the window reaches an end of what was tried"
        )
        return "\n".join([*text, "", rule])


@without_autocast()
def fragility(
    hooked: HookedModel,
    edits: Mapping[str, Edit],
    data: Data,
    *,
    label: int | None = None,
    judge: Judge | None = None,
    contexts: Mapping[str, Context] | None = None,
    multiples: Sequence[float] = MULTIPLES,
    success: float = 0.8,
    collateral: float = 0.05,
) -> Fragility:
    """Return in which multiples edits succeed without harm, in each of some contexts.

    An edit that works at one strength only, or at another one in every context, is luck.

    Args:
        hooked: the attached model; it is as it was afterwards.
        edits: by name, such as the same one at several sites.
        data: recorded inputs of the classifier, for edits of it, or a loader of (images, labels):
            the context "clean".
        label: of a class to suppress. Success is the share of its images, predicted so before, that
            no longer are; collateral the share of all others, predicted rightly before, that no
            longer are (gains elsewhere do not make up for it).
        judge: instead of a label: gets logits before and after, (images, classes), and labels, and
            returns success and collateral, both from 0 to 1.
        contexts: by name, a corruption of image batches, which is applied once, or data in that
            context. Each is held in memory and compared with the unedited model in that context.
        multiples: of every edit, ascending; the finer, the better the edges are known.
        success: least success that passes.
        collateral: largest collateral that passes.

    Raises:
        InputError: if names, multiples or bounds cannot be used, an edit changes nothing, there is
            nothing to judge, or as for `with_kl`.
        SalveError: as `Edit.apply_`, if an edit is not one of this model.
    """
    judge = _judge(label, judge)
    success, collateral = _bound(success, "success"), _bound(collateral, "collateral")
    tried = _checked(edits, multiples)
    if not isinstance(contexts, Mapping | None):
        raise InputError(f"contexts {contexts!r:.200} are to be a mapping, each by its name")
    for name in contexts or {}:
        _check_name(name)
    around = {CLEAN: data, **(contexts or {})}
    if contexts is not None and CLEAN in contexts:
        raise InputError(f"a context is named '{CLEAN}', as the data themselves are; rename it")
    by_edit: dict[str, list[SuccessWindow]] = {name: [] for name in edits}
    for context, given in around.items():
        # One context at a time: its images, where a corruption made them, are in memory.
        responses = Responses.of(hooked, _data_in(hooked, given, data), by_class=True)
        for name, edit in edits.items():
            answers = (responses.after(at_multiple(edit, multiple)) for multiple in tried)
            results = [
                _shares(judge(responses.base, answer, responses.labels)) for answer in answers
            ]
            passing = [s >= success and c <= collateral for s, c in results]
            run = _longest_run(passing)
            low, high = (None, None) if run is None else (tried[run[0]], tried[run[1]])
            window = SuccessWindow(
                name, edit.site.name, context, low, high,
                0.0 if low is None or high is None else math.log2(high / low),
                run is not None and (run[0] == 0 or run[1] == len(tried) - 1),
                tuple(s for s, _ in results), tuple(c for _, c in results),
            )  # fmt: skip
            by_edit[name].append(window)
    windows = tuple(window for own in by_edit.values() for window in own)
    return Fragility(windows, tried, success, collateral)


def _judge(label: int | None, judge: Judge | None) -> Judge:
    if (label is None) == (judge is None):
        raise InputError("give either label=, a class to suppress, or judge=")
    if judge is not None:
        if not callable(judge):
            raise InputError(f"judge is {judge!r:.80}; expected a function of logits and labels")
        return judge
    index = whole(label, "label")

    def suppressed(before: Tensor, after: Tensor, labels: Tensor) -> tuple[float, float]:
        was, now = before.argmax(1), after.argmax(1)
        target = (labels == index) & (was == index)
        others = (labels != index) & (was == labels)
        if not bool(target.any()) or not bool(others.any()):
            raise InputError(
                f"of class {index} {int(target.sum())} and of others {int(others.sum())} images "
                "are predicted rightly before the edit; both are needed in every context"
            )
        return float((now != index)[target].double().mean()), float(
            (now != labels)[others].double().mean()
        )

    return suppressed


def _shares(judged: object) -> tuple[float, float]:
    """Return what a judge says, which a caller may have written."""
    if not isinstance(judged, tuple) or len(judged) != 2:
        raise InputError(f"judge returned {judged!r:.200}; expected (success, collateral)")
    success, collateral = real(judged[0], "success"), real(judged[1], "collateral")
    if not 0 <= success <= 1 or not 0 <= collateral <= 1:
        raise InputError(
            f"judge returned success {success} and collateral {collateral}; both are shares from 0 "
            "to 1"
        )
    return success, collateral


def _bound(value: object, name: str) -> float:
    bound = real(value, name)
    if not 0 <= bound <= 1:
        raise InputError(f"{name} {bound} is to be from 0 to 1")
    return bound


def _checked(edits: Mapping[str, Edit], multiples: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(edits, Mapping) or not edits:
        raise InputError(f"edits {edits!r:.200} are to be at least one, by name")
    for name, edit in edits.items():
        _check_name(name)
        if not isinstance(edit, Edit) or does_nothing(edit.operator):
            raise InputError(f"'{name}' is {edit!r:.200}; an edit that does something is expected")
    given = several(multiples, "multiples", "a multiple after the other, e.g. (0.5, 1, 2)")
    tried = tuple(real(each, "a multiple") for each in given)
    ascending = all(a < b for a, b in pairwise(tried))
    if len(tried) < 2 or not ascending or not tried[0] > 0 or not tried[-1] < math.inf:
        raise InputError(f"multiples {tried[:10]} are to be at least two, above 0 and ascending")
    return tried


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InputError(f"{name!r:.200} is no name of an edit or a context; give a text")


def _data_in(hooked: HookedModel, given: Context, data: Data) -> Data:
    """Return the data in a context; what a function makes of the images is drawn once."""
    if isinstance(given, Activations) or not callable(given):
        return given
    if isinstance(data, Activations):
        raise InputError(
            "a corruption acts on images, and the data are recorded activations; give a loader, or "
            "a recording made in that context"
        )
    return [(given(batch.images), batch.labels) for batch in model_batches(hooked, data)]


def _longest_run(passing: Sequence[bool]) -> tuple[int, int] | None:
    """Return first and last index of the longest unbroken run, the first of equals."""
    best: tuple[int, int] | None = None
    start = 0
    # The failure that is added closes a run that reaches the end.
    for index, passes in enumerate([*passing, False]):
        if not passes:
            if index > start and (best is None or index - 1 - start > best[1] - best[0]):
                best = (start, index - 1)
            start = index + 1
    return best
