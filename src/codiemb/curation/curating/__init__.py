"""A recipe from raw documents and labelled files to a training set with its data card."""

from codiemb.curation.curating.recipe import CurationRecipe
from codiemb.curation.curating.run import CurationReport, curate

__all__ = ["CurationRecipe", "CurationReport", "curate"]
