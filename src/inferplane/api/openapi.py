"""`/openapi.json`, written from the route table and the wire structs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from inferplane.api.routes import Route
from inferplane.wire.envelope import ErrorBody

OPENAPI_VERSION = "3.1.0"
REFERENCE = "#/components/schemas/{name}"
ERROR_SCHEMA = "Failure"

_PATH_NAME = re.compile(r"\{(\w+)\}")


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole OpenAPI document as JSON values."""
    routes = tuple(routes)
    shapes = [shape for route in routes for shape in (route.body, route.data) if shape is not None]
    wanted: list[type[msgspec.Struct]] = list(dict.fromkeys([*shapes, ErrorBody]))
    schemas, components = msgspec.json.schema_components(wanted, ref_template=REFERENCE)
    by_shape: dict[type[msgspec.Struct], Any] = dict(zip(wanted, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        for method in route.methods:
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, method, by_shape)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Inferplane",
            "version": version,
            "description": "Every answer is an envelope. See the user guide for its rules.",
        },
        "paths": paths,
        "components": {
            "schemas": {**components, ERROR_SCHEMA: _failure(by_shape[ErrorBody])},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(route: Route, method: str, by_shape: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__ + ("" if len(route.methods) == 1 else f"_{method.lower()}"),
        "summary": route.summary,
        "description": (route.handler.__doc__ or "").strip(),
        "responses": {
            "200": {"description": "Success", "content": _content(route, by_shape)},
            "default": {
                "description": "Failure; the status is also in statusCode",
                "content": {"application/json": {"schema": {"$ref": REFERENCE.format(name=ERROR_SCHEMA)}}},
            },
        },
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_NAME.findall(route.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": words, "schema": {"type": "string"}}
        for name, words in route.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": by_shape[route.body]}},
        }
    if route.token:
        operation["security"] = [{"token": []}]
    return operation


def _content(route: Route, by_shape: dict[type[msgspec.Struct], Any]) -> dict[str, Any]:
    if route.data is None:
        return {route.media_type: {"schema": {}}}
    return {
        route.media_type: {
            "schema": {
                "type": "object",
                "required": ["statusCode", "status", "message", "data"],
                "properties": {
                    "statusCode": {"const": 200},
                    "status": {"const": "OK"},
                    "message": {"const": "Success"},
                    "data": by_shape[route.data],
                },
                "additionalProperties": False,
            }
        }
    }


def _failure(error: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["statusCode", "status", "message", "data", "error"],
        "properties": {
            "statusCode": {"type": "integer"},
            "status": {"type": "string"},
            "message": {"type": "string"},
            "data": {"type": "null"},
            "error": error,
        },
        "additionalProperties": False,
    }
