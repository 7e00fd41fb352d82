"""What describes a dictionary beside its tensors, as JSON, and the dictionary made of both."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from salve_plugin.control.base import plain_json
from salve_plugin.discover import learners
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.errors import ArtifactError, InputError
from salve_plugin.share.canonical import Json
from salve_plugin.site import Site


def fields_of(dictionary: Dictionary) -> Json:
    """Return options, site and meta.

    Raises:
        InputError: if `meta` holds something that JSON cannot.
    """
    try:
        meta = plain_json(dictionary.meta)
    except InputError as error:
        raise InputError(
            f"a dictionary's meta must hold finite plain JSON values: {error.__cause__}"
        ) from error
    return {"meta": meta, "options": dictionary.options, "site": dictionary.site.to_json()}


def rebuilt(
    learner: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], digest: object
) -> Dictionary:
    """Return the dictionary that has this digest.

    Args:
        learner: its name.
        fields: as from `fields_of`, after their schema was checked.
        tensors: by name.
        digest: what it must be.

    Raises:
        ArtifactError: if there is no such learner, the parts do not make a dictionary, or it is
            another one.
    """
    try:
        _check_cost(learner, fields["options"])
        rule = learners.create(learner, fields["options"])
        dictionary = Dictionary(tensors, rule, Site.from_json(fields["site"]), fields["meta"])
    except (InputError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"this is no dictionary of learner {learner[:100]!r}: {str(error)[:500]}. Get it "
            "again; if the learner is your own, call salve_plugin.discover.learners.register first"
        ) from error
    if dictionary.digest() != digest:
        raise ArtifactError(
            f"the dictionary is {dictionary.digest()}, it should be {digest}; get it again"
        )
    return dictionary


def _check_cost(learner: str, options: Mapping[str, object]) -> None:
    known = learners.LEARNERS.get(learner)
    for option, most in known.costly.items() if known else ():
        value = options.get(option, 0)
        if not (isinstance(value, int | float) and value <= most):
            raise InputError(f"its option {option} is {value!r}, more than the {most} that is read")
