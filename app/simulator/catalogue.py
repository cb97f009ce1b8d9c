"""Models and versions as the API describes them: enough for the official client's `run()`."""

from typing import Any

from app.simulator.models import model_named, version_id

_CREATED_AT = "2024-01-01T00:00:00.000000Z"
_COG_VERSION = "0.14.0"


def describe_model(name: str, base_url: str) -> dict[str, Any]:
    """The JSON object of model `owner/name`; every name exists."""
    owner, _, own = name.partition("/")
    return {
        "url": f"{base_url}/{name}",
        "owner": owner,
        "name": own,
        "description": "A simulated model",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": describe_version(name, version_id(name)),
    }


def describe_version(name: str, version: str) -> dict[str, Any]:
    """The JSON object of a version; its schema tells the client whether the output is an iterator."""
    schemas = {
        "Input": {"type": "object", "title": "Input", "properties": {}},
        "Output": {"title": "Output", **model_named(name).schema},
    }
    return {
        "id": version,
        "created_at": _CREATED_AT,
        "cog_version": _COG_VERSION,
        "openapi_schema": {"openapi": "3.0.2", "components": {"schemas": schemas}},
    }


def describe_deployment(name: str) -> dict[str, Any]:
    """The JSON object of deployment `owner/name`, which runs the model of that name."""
    owner, _, own = name.partition("/")
    return {
        "owner": owner,
        "name": own,
        "current_release": {
            "number": 1,
            "model": name,
            "version": version_id(name),
            "created_at": _CREATED_AT,
            "created_by": {"type": "user", "username": "simulator", "name": "Simulator", "github_url": None},
            "configuration": {"hardware": "cpu", "min_instances": 0, "max_instances": 1},
        },
    }
