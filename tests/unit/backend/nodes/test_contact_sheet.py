"""The page with all pictures of a table."""

from __future__ import annotations

from html.parser import HTMLParser

from backend.nodes.contact_sheet import contact_sheet

ENTRIES = [
    {"id": "fox", "status": "done", "prompt": "a <b>fox</b>", "seed": 7, "files": {"fox-0.webp": 1, "fox-1.webp": 1}, "size": "512x512"},
    {"id": "<script>", "status": "failed", "prompt": None, "seed": None, "error": "scale: must be from 1 to 8 & so on"},
]  # fmt: skip


class Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str | None] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_picture_and_every_failure_in_order() -> None:
    page = Page(contact_sheet(ENTRIES))
    assert page.images == ["fox-0.webp", "fox-1.webp"]
    assert page.tags.count("figure") == 2 and "script" not in page.tags
    for words in (
        "1 of 2 rows",
        "a <b>fox</b>",
        "seed 7, size 512x512",
        "<script>",
        "scale: must be from 1 to 8 & so on",
    ):
        assert words in page.text


def test_a_table_without_results_is_a_page_too() -> None:
    assert Page(contact_sheet([])).images == []
