"""Messages to token ids under one template: the single path of training, scoring and serving."""

from palate.rendering.lengths import LengthSettings
from palate.rendering.renderer import RenderedGroup, Renderer, render_groups

__all__ = ["LengthSettings", "RenderedGroup", "Renderer", "render_groups"]
