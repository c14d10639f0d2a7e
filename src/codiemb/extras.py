"""Optional dependencies: imported where they are used, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of this package installs.

    Args:
        module: its full name, `faiss` or `tencentcloud.lkeap.v20240522.models`.
        extra: as in `pip install 'codiemb[extra]'`.
    Raises:
        ModuleNotFoundError: it is not installed; the message has the pip command. An import that fails inside an
            installed module keeps its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise ModuleNotFoundError(
            f"This needs the package {error.name!r}, which is not installed. "
            f"Install it with: pip install 'codiemb[{extra}]'",
            name=error.name,
        ) from error
