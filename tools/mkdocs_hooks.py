"""What mkdocs needs changed in the pages of docs/; a code host shows them as they stand."""

import re
from typing import Any

NO_RUN = re.compile(r"^(```\w+) no-run$", re.MULTILINE)
LINK_OUT_OF_DOCS = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fences without `no-run`, which is for tools/readme_commands.py, and names instead of links to
    files that the built site does not hold."""
    return LINK_OUT_OF_DOCS.sub(r"\1", NO_RUN.sub(r"\1", markdown))
