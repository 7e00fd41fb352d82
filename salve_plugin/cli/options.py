"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
StudyFolder = Annotated[Path, typer.Argument(help="Folder that `salve discover` made.")]
StudyOrArtifact = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="Folder that `salve discover` made, or one that `salve edit` made."
    ),
]
Artifact = Annotated[
    str,
    typer.Argument(
        help="Folder of an edit, bundle or dictionary, or its Hub repository, user/name."
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the repository.")
]
Subfolder = Annotated[
    str | None, typer.Option("--subfolder", help="Inside the folder or repository.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Use the Hub client's cache only.")]
Again = Annotated[
    bool, typer.Option("--force-download", help="Trust nothing in the Hub client's cache.")
]
Endpoint = Annotated[
    str | None, typer.Option("--endpoint", help="Address of the Hub; by default HF_ENDPOINT.")
]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Force = Annotated[
    bool, typer.Option("--force", help="Overwrite what lies at --out, whatever it is.")
]
Skip = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable",
        help="Leave out images that cannot be read and subfolders without any, and count them.",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="timm model name; by default the artifact's base.")
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="State dict to load instead of pretrained weights."),
]
Classes = Annotated[
    int | None,
    typer.Option(
        "--num-classes", min=1, help="Size of the classifier; by default the checkpoint's."
    ),
]
ClassName = Annotated[
    str | None, typer.Option("--class", help="Class, by the name of its folder or its index.")
]
Latent = Annotated[
    int | None, typer.Option("--latent", help="Latent; by default chosen for the class.")
]
Rows = Annotated[
    str | None,
    typer.Option(
        "--rows",
        help="Classifier rows to edit: all (the paper), class, indices such as 3,5, or rivals: the "
        "class's row and those rivals' that it needs. By default rivals where a class is "
        "suppressed, class where one is enhanced, else all.",
    ),
]
