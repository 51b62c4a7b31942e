"""A hook of mkdocs: links that leave docs/ go to the file in the repository, and must name one that is there."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger('mkdocs.hooks.site_links')

REPOSITORY = Path(__file__).resolve().parent.parent
_LINK = re.compile(r'\]\((?P<path>(?:\.\./)+[^)#\s]+)(?P<anchor>#[^)\s]*)?\)')


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """`../README.md` of a page becomes the README's address; what is not there is a warning, which ends the build."""
    here = posixpath.dirname(f'docs/{page.file.src_uri}')

    def outward(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match['path']))
        if target.startswith('docs/'):
            return match[0]
        if not (REPOSITORY / target).exists():
            logger.warning('%s links to %s, which is not there', page.file.src_uri, target)
        return f']({config["repo_url"].rstrip("/")}/blob/main/{target}{match["anchor"] or ""})'

    return _LINK.sub(outward, markdown)
