"""Recipes that build a guide: `fl.recipes.nested(["image", "text"], [1.5, 7.5])`.

In text they stand where a term does, `nested(['image', 'text'], [1.5, 7.5])`; the guide prints as
what it is made of.
"""

from fairlead.guidance.composition import *  # noqa: F403
from fairlead.guidance.composition import __all__ as __all__
