"""Dictionary learners, one a file: a new one is a new file here, or a class of one's own elsewhere.

Each says of itself what there is to know: `salve_plugin.discover.learners.base.Learner` lists it.
Its file decorates it with `register`, and every file in this folder is imported, so that no list of
learners has to be kept. A learner from elsewhere is there once the module that registers it is
imported.
"""

import pkgutil
from importlib import import_module

from salve_plugin.discover.learners.registry import (
    LEARNERS,
    LearnerInfo,
    create,
    learners,
    register,
)

__all__ = ["LEARNERS", "LearnerInfo", "create", "learners", "register"]


def _import_all() -> None:
    """Import what lies in this package, in order of its names: that fills the registry."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        import_module(f"{__name__}.{name}")


_import_all()
