"""codiemb: train one text-embedding model jointly on retrieval and similarity, measure it, and put it to work."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("codiemb")
