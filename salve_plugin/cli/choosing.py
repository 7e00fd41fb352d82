"""Which latent and rows a command is about: for one class the same in every command."""

from dataclasses import dataclass
from pathlib import Path

from salve_plugin.cli.study import OpenModel, Study
from salve_plugin.control.choosing.candidate import Choice
from salve_plugin.control.choosing.choose import choose
from salve_plugin.control.choosing.goals import RowChoice, SuppressClass
from salve_plugin.control.edit import Edit
from salve_plugin.control.making import enhance, suppress
from salve_plugin.control.rivals import with_rivals
from salve_plugin.discover.dictionary import Dictionary
from salve_plugin.discover.features import Features
from salve_plugin.discover.recording.activations import Activations
from salve_plugin.errors import InputError
from salve_plugin.site import HEAD_INPUT


@dataclass(frozen=True)
class Asked:
    """What the command line says of an edit.

    Attributes:
        class_name: name or index of a class.
        latent: of the dictionary; None has the class's chosen.
        rows: all, class, rivals or indices; None is what `salve edit` takes by default.
        strength: None has it chosen.
        enhancing: whether the edit enhances.
        recipe: file of an edit that is made already; then class_name is the class that it is about,
            and the others are not given.
    """

    class_name: str | None = None
    latent: int | None = None
    rows: str | None = None
    strength: float | None = None
    enhancing: bool = False
    recipe: Path | None = None


@dataclass(frozen=True)
class Evidence:
    """A study with its model, recording, dictionary and profile."""

    study: Study
    opened: OpenModel
    acts: Activations
    dictionary: Dictionary
    features: Features

    @classmethod
    def of(cls, study: Study) -> "Evidence":
        """Read and open a study.

        Raises:
            SalveError: if a part cannot be read, or the model is another one by now.
        """
        acts, dictionary, features = study.parts()
        return cls(study, study.open(acts), acts, dictionary, features)

    def label(self, asked: Asked) -> int | None:
        """Return the class that is asked about.

        Raises:
            InputError: if there is no such class, or it has no images.
        """
        return None if asked.class_name is None else label_of(self.features, asked.class_name)

    def latent(self, asked: Asked) -> int:
        """Return the latent that is named, or else that which `salve edit` takes for the class.

        Raises:
            InputError: if neither is named, or the latent does not exist.
        """
        self.check(asked)
        if asked.latent is not None:
            return asked.latent
        choice = self._choice(self._label(asked), "rivals")
        return self._dominant(asked) if choice is None else choice.edit.latent

    def edit(self, asked: Asked) -> tuple[Edit, Choice | None]:
        """Return the edit that is asked for, and the choice that it was, if it was one.

        Of an edit with a named latent and no strength, the strength is still open.

        Raises:
            InputError: if class, latent, rows or strength cannot be used, or the recipe is of
                another dictionary.
            ArtifactError: if the recipe cannot be read.
        """
        if asked.recipe is not None:
            return self._given(asked, asked.recipe), None
        self.check(asked)
        label = self.label(asked)
        # One logit has no rivals: its row is that of both classes.
        whole = label is None or len(self.opened.hooked.unembed(partial=True)[1]) == 1
        default = "all" if whole else "class" if asked.enhancing else "rivals"
        # Which rivals are needed depends on how far the class is lowered; enhancing lowers none.
        rows = rows_of(default if asked.rows is None else asked.rows, label)
        if rows == "rivals" and asked.enhancing:
            raise InputError("--rows rivals is for suppressing: give class, all or indices")
        latent, choice = asked.latent, None
        if latent is None:
            suppressed = "rivals" if asked.enhancing else rows
            choice = self._choice(self._label(asked), suppressed)
            latent = self._dominant(asked) if choice is None else choice.edit.latent
        if choice is not None and asked.strength is None and not asked.enhancing:
            return choice.edit, choice
        operator = enhance if asked.enhancing else suppress
        fixed = None if rows == "rivals" else rows
        # Without a strength it is 0 for now: the caller, or `with_rivals`, finds the one that is
        # needed.
        edit = operator(
            self.opened.hooked, self.dictionary, latent=latent, strength=asked.strength or 0.0,
            rows=fixed,
        )  # fmt: skip
        if rows != "rivals":
            return edit, None
        assert label is not None  # `rows_of` saw to that
        head = self.opened.hooked.unembed(edit.site)
        recorded = (self.acts.tensor(), self.acts.labels())
        tried = None if asked.strength is None else [asked.strength]
        return with_rivals(edit, *head, recorded, label, tried), None

    def check(self, asked: Asked) -> None:
        """Refuse what names nothing, or a latent that is not there.

        Raises:
            InputError: says what to name.
        """
        if asked.latent is None and asked.class_name is None:
            raise InputError("name a class (--class) or a latent (--latent)")
        self.label(asked)
        if asked.latent is not None and not 0 <= asked.latent < self.dictionary.n_latents:
            raise InputError(
                f"latent {asked.latent} does not exist: the dictionary has "
                f"{self.dictionary.n_latents}, 0 to {self.dictionary.n_latents - 1}"
            )

    def _given(self, asked: Asked, recipe: Path) -> Edit:
        others = {
            "latent": asked.latent, "rows": asked.rows, "strength": asked.strength,
            "enhance": asked.enhancing,
        }  # fmt: skip
        check_alone("--recipe holds a whole edit", **others)
        edit = Edit.from_recipe(recipe)
        if edit.dictionary_digest not in (None, self.dictionary.digest):
            raise InputError(
                f"{recipe} is of the dictionary {edit.dictionary_digest:.12}, the study's is "
                f"{self.dictionary.digest[:12]}; give the study that it was made in"
            )
        return edit

    def _label(self, asked: Asked) -> int:
        label = self.label(asked)
        assert label is not None  # `check` saw to that
        return label

    def _dominant(self, asked: Asked) -> int:
        return self.features.dominant(self._label(asked))

    def _choice(self, label: int, rows: RowChoice) -> Choice | None:
        """Return the choice for a class; None if there is none to be made."""
        if self.dictionary.site.name != HEAD_INPUT:  # no decision follows from its latents alone
            return None
        goal = SuppressClass(label, by="latents", rows=rows)
        try:
            return choose(
                self.opened.hooked, goal, self.acts, dictionary=self.dictionary,
                features=self.features,
            )  # fmt: skip
        except InputError:  # no latent flips an image: the dominant one tells as much as any
            return None


def check_alone(what: str, **others: object) -> None:
    """Refuse options that say which edit beside one that says so already.

    Args:
        what: that option, and what it is about.
        others: values by option, None and False of those that are not given.

    Raises:
        InputError: names the first of them that is given.
    """
    given = [name for name, value in others.items() if value not in (None, False)]
    if given:
        raise InputError(f"{what}; --{given[0]} is about another: give one or the other")


def label_of(features: Features, class_name: str) -> int:
    """Return the class of a name, or of an index where no class has that name.

    Raises:
        InputError: if there is no such class, or it has no images.
    """
    named = features.classes is not None and class_name in features.classes
    plain_number = class_name.isascii() and class_name.isdigit()
    return features.class_index(int(class_name) if plain_number and not named else class_name)


def rows_of(rows: str, label: int | None) -> RowChoice:
    """Return what `--rows` says: indices, None for all, or "rivals".

    Raises:
        InputError: if it says nothing of the kind, or needs a class.
    """
    if rows == "all":
        return None
    if rows in ("class", "rivals"):
        if label is None:
            raise InputError(f"--rows {rows} needs --class")
        return "rivals" if rows == "rivals" else (label,)
    try:
        return tuple(int(index) for index in rows.split(","))
    except ValueError as error:
        raise InputError(
            f"--rows {rows!r} is unknown; use all, class, rivals, or indices such as 3,5"
        ) from error
