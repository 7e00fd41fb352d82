"""Whether something is a dictionary, and a recording what it reads."""

from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.kinds import of_kind


def check_dictionary(dictionary: object) -> None:
    """Refuse what is no dictionary.

    Raises:
        InputError: names it.
    """
    of_kind(dictionary, Dictionary, "dictionary", "a Dictionary, such as salve.fit returns")


def check_read(dictionary: object, acts: object) -> None:
    """Refuse what is no dictionary or no recording, and a recording of another site.

    Raises:
        InputError: names both.
    """
    if not isinstance(dictionary, Dictionary) or not isinstance(acts, Activations):
        raise InputError(
            f"a dictionary and a recording were expected, in this order; got "
            f"{type(dictionary).__name__} and {type(acts).__name__}: pass what salve.fit and "
            "salve.record return"
        )
    site, recorded = dictionary.site, acts.site
    if site != recorded:
        raise InputError(
            f"the dictionary reads site '{site.name}' ({site.width} features), the recording is of "
            f"'{recorded.name}' ({recorded.width}); record the dictionary's site"
        )
