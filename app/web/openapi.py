"""The description of the JSON API, OpenAPI 3.1: made from the table of operations and from their models."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.core.names import Kind
from app.web import models
from app.web.api import KEY, LONGEST_KEY, OPERATIONS, PREFIX, PROBLEM, Operation, by_path

_REF = "#/components/schemas/{model}"
_ALWAYS = {
    "400": "a parameter or a key is unknown or wrong, and named",
    "401": "no token and no session came with it, or a wrong one",
    "403": "a foreign page asks",
    "429": "too many wrong tokens came from this address",
    "503": "Redis, the storage or the catalog does not answer; try again",
}
_BODIES = {
    "409": "it cannot be done as things are",
    "413": "the body is too large",
    "415": "the body is no application/json",
    "422": "the Idempotency-Key came with another body before",
}


def description() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Outkeep",
            "version": "1",
            "description": "What was received from Replicate, what was kept of it, and who was told.",
        },
        "servers": [{"url": PREFIX}],
        "security": [{"token": []}],
        "paths": {
            path: {method.lower(): _operation(*found) for method, found in methods.items()}
            for path, methods in by_path().items()
        },
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "OUTKEEP_ADMIN_TOKEN"}
            },
            "schemas": _schemas(),
        },
    }


def _schemas() -> dict[str, Any]:
    shown: set[type[BaseModel]] = {models.Problem}
    shown |= {answer for one in OPERATIONS for answer in one.answers}
    taken = {one.body for one in OPERATIONS if one.body}
    modes: list[tuple[type[BaseModel], JsonSchemaMode]] = [(one, "serialization") for one in shown]
    modes += [(one, "validation") for one in taken]
    _, document = models_json_schema(sorted(modes, key=lambda one: one[0].__name__), ref_template=_REF)
    return dict(document["$defs"])


def _operation(one: Operation, kind: Kind) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": f"{one.name}{kind.folder.title()}" if "{folder}" in one.path else one.name,
        "summary": one.summary,
        "parameters": [*_path_parameters(one), *_query_parameters(one.query), *_headers(one)],
        "responses": {str(status): answer for status, answer in _answers(one)},
    }
    if one.body is not None:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=one.body.__name__)}}}
        found["requestBody"] = {"content": content, "required": False}
    return found


def _path_parameters(one: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"\{(id|name)\}", one.path):
        schema = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _query_parameters(query: type[BaseModel]) -> Iterator[dict[str, Any]]:
    schema = query.model_json_schema(ref_template=_REF)
    for name, found in schema.get("properties", {}).items():
        described = {key: value for key, value in found.items() if key not in {"title", "default"}}
        choices = [one for one in described.pop("anyOf", ()) if one.get("type") != "null"]
        if choices:
            described |= choices[0] if len(choices) == 1 else {"anyOf": choices}
        if "$ref" in described:
            described = _inlined(schema, described)
        yield {"name": name, "in": "query", "required": False, "schema": described}


def _inlined(schema: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    name = described.pop("$ref").rpartition("/")[2]
    return described | {key: schema["$defs"][name][key] for key in ("type", "enum")}


def _headers(one: Operation) -> Iterator[dict[str, Any]]:
    if one.method == "POST":
        schema = {"type": "string", "pattern": f"^[!-~]{{1,{LONGEST_KEY}}}$"}
        text = "the same key within 24 h gets the same answer, and nothing is done twice"
        yield {"name": KEY, "in": "header", "required": False, "schema": schema, "description": text}
    if one.name == "stream":
        schema = {"type": "string", "pattern": "^[0-9]{1,16}-[0-9]{1,16}$"}
        yield {"name": "last-event-id", "in": "header", "required": False, "schema": schema}


def _answers(one: Operation) -> Iterator[tuple[str, dict[str, Any]]]:
    names = [answer.__name__ for answer in one.answers]
    if one.name == "stream":
        content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    elif not names:
        content = {"application/json": {"schema": {"type": "object"}}}
    else:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=names[0])}}}
    yield str(one.status), {"description": one.summary, "content": content}
    if len(names) > 1:
        planned = {"application/json": {"schema": {"$ref": _REF.format(model=names[1])}}}
        yield "200", {"description": "Nothing was done, as was wished", "content": planned}
    if one.name == "show":
        yield "304", {"description": "It is as its ETag says"}
    problem = {PROBLEM: {"schema": {"$ref": _REF.format(model="Problem")}}}
    others = {**_ALWAYS, **{str(status): "nothing is known of it" for status in one.errors}}
    if one.method == "POST":
        others |= _BODIES
    elif one.name in {"show", "attempts"}:
        others["409"] = "its manifest cannot be used"
    for status, text in sorted(others.items()):
        yield status, {"description": text, "content": problem}


def document() -> str:
    """The text of `docs/openapi.json`."""
    return json.dumps(description(), indent=1, ensure_ascii=False) + "\n"
