"""What an edit makes of the parameters, before any image is looked at."""

from dataclasses import dataclass

from salve_plugin.control.assessment.batches import Head
from salve_plugin.control.assessment.budget import budget_of
from salve_plugin.control.assessment.outcomes import Budget
from salve_plugin.control.base import bare
from salve_plugin.control.edit import Edit
from salve_plugin.errors import InputError
from salve_plugin.hooks import HookedModel
from salve_plugin.network import OnBaseMismatch


def check_subjects(hooked: object, edit: object) -> None:
    """Raise InputError unless these are an attached model and an edit."""
    if not isinstance(hooked, HookedModel) or not isinstance(edit, Edit):
        raise InputError(
            f"an attached model and an edit were expected, got {type(hooked).__name__} and "
            f"{type(edit).__name__}: pass salve.attach(model) and e.g. salve.suppress(...)"
        )


@dataclass(frozen=True, eq=False)
class Changes:
    """What an edit makes of the parameters, without an image.

    Attributes:
        head: the classifier before; None if the model has no site there.
        edited_head: after.
        budget: what is spent.
        is_of_head: whether nothing but the classifier's layers changes.
    """

    head: Head | None
    edited_head: Head | None
    budget: Budget
    is_of_head: bool

    @classmethod
    def of(cls, hooked: HookedModel, edit: Edit, mismatch: OnBaseMismatch) -> "Changes":
        """Apply an edit for a moment, and compare.

        Raises:
            SalveError: if it cannot be applied to the model.
        """
        model, paths = bare(hooked), sorted(edit.base.tensors)
        head = Head.of(hooked)
        # Applied for a moment and not computed anew: what is assessed is what `apply_` writes.
        with edit.applied(model, on_base_mismatch=mismatch):
            edited = Head.of(hooked)
            after = {path: model.get_parameter(path).detach().clone() for path in paths}
        before = {path: model.get_parameter(path).detach().clone() for path in paths}
        layers = {path.rpartition(".")[0] for path in paths}
        return cls(head, edited, budget_of(edit, before, after), layers <= set(hooked.heads))
