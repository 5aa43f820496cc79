"""Messages to token ids under one template: the single path of training, scoring and serving."""

from palate.rendering.groups import RenderedGroup, render_groups
from palate.rendering.lengths import LengthSettings
from palate.rendering.renderer import Renderer

__all__ = ["LengthSettings", "RenderedGroup", "Renderer", "render_groups"]
