"""Messages to token ids under one template: the single path of training, scoring and serving."""

from palate.rendering.groups import RenderedGroup
from palate.rendering.lengths import LengthSettings
from palate.rendering.renderer import Renderer
from palate.rendering.settings import RenderSettings
from palate.rendering.tokeniser import Tokeniser, render_groups

__all__ = [
    "LengthSettings",
    "RenderSettings",
    "RenderedGroup",
    "Renderer",
    "Tokeniser",
    "render_groups",
]
