"""A hook of mkdocs that shows the executed notebooks of this folder as pages."""

import base64
import html
import json
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in the place of each notebook, and its pictures beside it."""
    for file in list(files):
        if not file.src_uri.endswith(".ipynb"):
            continue
        stem = file.src_uri.removesuffix(".ipynb")
        cells = json.loads(file.content_string)["cells"]
        parts = []
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
                continue
            parts.append(f"```python\n{source}\n```")
            for output in cell["outputs"]:
                picture = output.get("data", {}).get("image/png")
                if picture is None:
                    parts.append(_text(output))
                    continue
                name = f"{stem}-{len(parts)}.png"
                files.append(File.generated(config, name, content=base64.b64decode(picture)))
                alternative = html.escape(_before(parts), quote=True)
                parts.append(f"![{alternative}]({name.rpartition('/')[2]})")
        page = "\n\n".join([*parts, f"[The notebook]({stem.rpartition('/')[2]}.ipynb)"])
        files.append(File.generated(config, f"{stem}.md", content=page + "\n"))
    return files


def _text(output: dict[str, Any]) -> str:
    """Return what a cell printed, or its value."""
    written = output.get("text") or output.get("data", {}).get("text/plain", "")
    text = "".join(written).rstrip()
    return f'```{{.text .printed title="Out"}}\n{text}\n```' if text else ""


def _before(parts: list[str]) -> str:
    """Return what a picture shows: the last line that stands before it."""
    lines = [line for part in parts for line in part.splitlines() if not line.startswith("!")]
    told = [re.sub("[`*]", "", line) for line in lines if line.strip("`")]
    return told[-1] if told else "output"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to a notebook to its page; in the repository they lead to the notebook."""
    if page.file.src_uri.startswith("notebooks/"):
        return markdown
    return re.sub(r"\((notebooks/\w+)\.ipynb\)", r"(\1.md)", markdown)
