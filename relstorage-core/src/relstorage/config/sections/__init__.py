"""The section types of ZConfig, generated when a configuration imports ``relstorage``.

ZConfig reads the ``component.xml`` of a package through the loader of the package, and finds the conversion functions
that the component names as attributes of modules. The loader of this package answers with a component made from the
backends that are installed now; ``types`` has the functions that go with it.
"""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader
from typing import Any

from relstorage.config.zconfig import SectionTypes

types: SectionTypes = SectionTypes(f"{__name__}.types")


class ComponentLoader(SourceFileLoader):
    """Loads this package from its files, but for ``component.xml``, which is generated."""

    def get_data(self, path: Any) -> bytes:
        if os.path.basename(path) == "component.xml":
            return types.component().encode()
        return super().get_data(path)


# The two names of a module's loader have to agree.
__spec__.loader = __loader__ = ComponentLoader(__name__, __file__)
