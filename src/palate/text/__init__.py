"""Plain facts about texts: normal forms and the style features that need no model."""

from palate.text.features import STYLE_FEATURES, style_features
from palate.text.normal import first_surrogate, normalise, plural

__all__ = ["STYLE_FEATURES", "first_surrogate", "normalise", "plural", "style_features"]
