"""An atlas as an anywidget: the script of its pages runs in an output, and asks Python for data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets

from salve_plugin.errors import ArtifactError
from salve_plugin.faces.one_line import shortened
from salve_plugin.report.folder import Pages, page_files

_START = """export default {{ render({{ model, el }}) {{
const atlasWidget = {{ model, el, css: {css} }};
{script}
return () => atlasWidget.dispose();
}} }};
"""
"""Each output runs the whole script: what the pages remember is of that output alone."""


def module() -> str:
    """Return the pages as the JavaScript module that notebooks load."""
    files = {name: content.decode() for name, content in page_files().items()}
    return _START.format(css=json.dumps(files["atlas.css"]), script=files["atlas.js"])


class AtlasWidget(anywidget.AnyWidget):
    """An atlas in a notebook; `salve_plugin.atlas_widget` makes it.

    Attributes:
        recipe: of the edit that was last on the bench, the bytes of a file, as
            `salve_plugin.Edit.from_recipe` takes them. None until there is one. It can be observed,
            as any trait can.
    """

    _esm = module()
    recipe = traitlets.Instance(bytes, allow_none=True)

    def __init__(self, pages: Pages) -> None:
        """Show pages that have been written."""
        super().__init__()
        self._pages = pages
        # By messages, on request: synced traits would hold all data at once on both sides.
        self.on_msg(self._heard)

    def _heard(self, _: object, said: Mapping[str, Any], data: Sequence[memoryview]) -> None:
        if "load" in said:
            self._answer(str(said["load"]))
        else:
            self.recipe = bytes(data[0]) if said.get("edited") and data else None

    def _answer(self, key: str) -> None:
        try:
            piece = self._pages.piece(key)
        except ArtifactError as error:
            self.send({"key": key, "error": str(error)})
        else:
            self.send({"key": key}, [piece])

    def __repr__(self) -> str:
        """Say in one line what is shown, and whether its bench has an edit."""
        edit = "no edit yet" if self.recipe is None else "an edit"
        return shortened(f"<AtlasWidget of {self._pages.folder}: {edit} on its bench>")
