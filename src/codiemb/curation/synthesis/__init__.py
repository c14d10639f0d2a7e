"""Training data written by a language model for given documents, and the gates it has to pass.

A `SynthesisRecipe` says what is wanted, `synthesize` does it. Everything that reaches the output is a function of the
recipe, the documents, the templates and the answers, which a journal keeps.
"""

from codiemb.curation.synthesis.asking import SynthesisError
from codiemb.curation.synthesis.recipe import SynthesisRecipe
from codiemb.curation.synthesis.report import SynthesisReport
from codiemb.curation.synthesis.run import synthesize

__all__ = ["SynthesisError", "SynthesisRecipe", "SynthesisReport", "synthesize"]
