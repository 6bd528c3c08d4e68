"""The API's description as one page for people: made once from the document, with nothing to load and nothing to run."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup, escape

_FOLDER: Final = Path(__file__).parent
_CODE: Final = re.compile(r"`([^`]+)`")
_MINUS: Final = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and what a browser may do with it."""

    html: str
    policy: str
    """Of `Content-Security-Policy`: the page's own style, and nothing else."""


def render(document: Mapping[str, Any]) -> Page:
    """Return the page of an OpenAPI document. Raises: OSError."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - most commands show no page

    # Every text of the document is escaped, whoever wrote it.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"prose": _prose, "indented": _indented, "kind": _kind, "anchor": _anchor, "phrase": _phrase}
    style = (_FOLDER / "docs.css").read_text(encoding="utf-8")
    template = environment.from_string((_FOLDER / "docs.html").read_text(encoding="utf-8"))
    html = template.render(
        document=document,
        style=Markup(style),  # noqa: S704 - ours, and hashed in the policy
        call=next(operation for operation in _operations(document) if "call" in operation["tags"]),
        others=[operation for operation in _operations(document) if "call" not in operation["tags"]],
    )
    digest = b64encode(sha256(style.encode()).digest()).decode()
    return Page(
        html,
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'",
    )


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every operation, with its address, and with what it refers to in place."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield {**_resolved(operation, document), "path": path, "method": method.upper()}


def _resolved(part: Any, document: Mapping[str, Any]) -> Any:
    """Return a part of the document without references."""
    if isinstance(part, list):
        return [_resolved(item, document) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        found: Any = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return _resolved(found, document)
    return {name: _resolved(value, document) for name, value in part.items()}


def _prose(text: str) -> Markup:
    """Return a description as HTML: escaped, with paragraphs and code."""
    code = _CODE.sub(r"<code>\1</code>", str(escape(text)))
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in code.split("\n\n")))  # noqa: S704 - escaped above


def _indented(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _kind(schema: Mapping[str, Any]) -> str:
    """Say in words what a schema takes."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind({"type": one["type"]}) for one in schema["anyOf"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"])) if len(schema["enum"]) < 5 else "one of the errors"
    kinds = schema.get("type", "anything")
    words = [{"string": "text", "null": "null"}.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    bounds = f", {schema['minimum']} to {schema['maximum']}" if "maximum" in schema else ""
    return " or ".join(words) + bounds


def _anchor(text: str) -> str:
    return _MINUS.sub("-", text.lower()).strip("-")


def _phrase(status: str) -> str:
    return HTTPStatus(int(status)).phrase
