"""How schemas are written down: JSON Schema, draft 2020-12, as OpenAPI 3.1 has it."""

from typing import Any

Schema = dict[str, Any]


def ref(name: str) -> Schema:
    """A schema of this document."""
    return {"$ref": f"#/components/schemas/{name}"}


def text(description: str, **more: Any) -> Schema:
    """A string."""
    return {"type": "string", "description": description, **more}


def whole(description: str, minimum: int | None = 0, **more: Any) -> Schema:
    """A whole number, from ``minimum`` on."""
    return {"type": "integer", "description": description, **({} if minimum is None else {"minimum": minimum}), **more}


def number(description: str) -> Schema:
    """A number from 0 on."""
    return {"type": "number", "description": description, "minimum": 0}


def flag(description: str) -> Schema:
    """True or false."""
    return {"type": "boolean", "description": description}


def uuid(description: str) -> Schema:
    """A UUID."""
    return text(description, format="uuid")


def moment(description: str) -> Schema:
    """A time."""
    return text(description, format="date-time")


def listed(items: Schema, description: str, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "description": description, **more}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    if "$ref" in schema:
        return {"oneOf": [schema, {"type": "null"}]}
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **more}


def record(description: str, properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object with these properties, all there but the ``optional``. Later versions may have others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "description": description, "properties": properties, "required": required}
