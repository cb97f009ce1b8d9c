"""Text that must not show by accident, in a log line or in the `repr` of what holds it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SecretStr:
    """A text that only `get_secret_value` gives away; named as pydantic has it."""

    _text: str

    def get_secret_value(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "SecretStr('**********')"

    def __str__(self) -> str:
        return "**********"
