"""How people name what makes a prediction: a model, one version of it, or a deployment."""

import re
from dataclasses import dataclass

_OWNER_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_MODEL = re.compile(rf"(?P<name>{_OWNER_NAME})(?::(?P<version>[A-Za-z0-9-]{{1,128}}))?", re.ASCII)
_DEPLOYMENT = re.compile(rf"deployments/(?P<name>{_OWNER_NAME})", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LONGEST = 300


@dataclass(frozen=True)
class Model:
    """`name` is `owner/name`, of a model or of a deployment; a deployment chooses its version itself.

    It is empty where only a version is named.
    """

    name: str
    version: str | None = None
    is_deployment: bool = False

    def __str__(self) -> str:
        prefix = "deployments/" if self.is_deployment else ""
        return f"{prefix}{self.name}{f':{self.version}' if self.version else ''}"


def parse_model(text: str) -> Model | None:
    """`owner/name`, `owner/name:version` or `deployments/owner/name`; None for anything else."""
    if len(text) > _LONGEST:
        return None
    if found := _DEPLOYMENT.fullmatch(text):
        return Model(found["name"], is_deployment=True)
    found = _MODEL.fullmatch(text)
    return Model(found["name"], found["version"]) if found else None


def parse_runnable(text: str) -> Model | None:
    """What `parse_model` reads, or the id of a version alone; None for anything else."""
    return Model("", text) if _VERSION.fullmatch(text) else parse_model(text)
