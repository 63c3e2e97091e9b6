"""All pictures of a table on one page, with their prompts, seeds and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

CONTACT_SHEET = "index.html"
MAX_PROMPT = 500
"""Characters of a prompt below its picture; the whole one is in its title."""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 sans-serif; margin: 1em; background: #f4f4f4; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(16em, 1fr)); gap: 1em }}
figure {{ margin: 0; padding: .6em; background: #fff; overflow-wrap: anywhere }}
img {{ width: 100%; display: block }}
small {{ color: #666 }}
.error {{ color: #a00 }}
</style>
<h1>{title}</h1>
<main>
{figures}
</main>
</html>
"""


def contact_sheet(entries: Iterable[Mapping[str, Any]]) -> str:
    """The page for the lines of a manifest, in their order. Pictures are named relative to its folder."""
    entries = list(entries)
    failed = sum(entry["status"] == "failed" for entry in entries)
    title = f"{len(entries) - failed} of {len(entries)} rows"
    return PAGE.format(title=title, figures="\n".join(map(_figure, entries)))


def _figure(entry: Mapping[str, Any]) -> str:
    prompt = str(entry.get("prompt") or "")
    shown = prompt if len(prompt) <= MAX_PROMPT else f"{prompt[:MAX_PROMPT]}..."
    images = "".join(
        f'<a href="{quote(name)}"><img loading="lazy" src="{quote(name)}" alt="{escape(shown)}"></a>'
        for name in entry.get("files", {})
    )
    facts = ", ".join(
        f"{name} {entry[name]}" for name in ("seed", "size", "model", "regions") if entry.get(name) is not None
    )
    error = f'<p class="error">{escape(str(entry["error"]))}</p>' if entry["status"] == "failed" else ""
    return (
        f'<figure title="{escape(prompt)}">{images}<figcaption><b>{escape(entry["id"])}</b> {escape(shown)}<br>'
        f"<small>{escape(facts)}</small>{error}</figcaption></figure>"
    )
