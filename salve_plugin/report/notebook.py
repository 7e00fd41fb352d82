"""An atlas in a notebook, where the extra for it is installed."""

import os
from typing import TYPE_CHECKING

from salve_plugin.errors import MissingExtraError
from salve_plugin.report.folder import Pages
from salve_plugin.store.files import usable

if TYPE_CHECKING:
    from salve_plugin.report.widget import AtlasWidget


def atlas_widget(folder: str | os.PathLike[str]) -> "AtlasWidget":
    """Show an atlas in a notebook; its edit comes back to Python.

    The pages are those that the folder opens with in a browser, and take what they show from it
    when they show it. `recipe` of the widget follows the edit bench:
    `salve_plugin.Edit.from_recipe(shown.recipe)` is the edit. While the kernel computes something
    else the pages wait for it.

    Args:
        folder: that `atlas` wrote, or `salve atlas` of a study or an artifact.

    Returns:
        An `anywidget.AnyWidget`, to be the last line of a cell. Several can be shown at once, and
        each in several cells.

    Raises:
        MissingExtraError: if anywidget is not installed.
        MissingFileError: if there is no atlas in the folder.
    """
    try:
        from salve_plugin.report.widget import AtlasWidget
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "traitlets"):
            raise
        raise MissingExtraError(
            f"an atlas in a notebook needs the package '{error.name}', which is not installed: "
            "pip install 'salve-plugin[notebook]'"
        ) from error
    # Pages are read later, wherever the notebook has gone by then.
    return AtlasWidget(Pages.of(usable(folder).absolute()))
