"""A page as one HTML file that needs no other: its style, its script, and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from tltrain.report.markup import Markup, element


def document(title: str, body: Markup, *, has_images: bool = False) -> str:
    """Return a page with the style and script of all pages. has_images: whether `body` has images as data: URIs."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    if has_images:
        policy += "; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", style),
    )
    return (
        "<!doctype html>\n" + element("html", head, element("body", body, element("script", script)), lang="en") + "\n"
    )


def _asset(name: str) -> Markup:
    return Markup((files("tltrain.report") / name).read_text("utf-8"))


def _hash(text: str) -> str:
    """What a Content-Security-Policy allows a style sheet or script by; anything else stays dead."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
