"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum


class Level(str, Enum):
    """How bad it is."""

    OK = "ok"
    #: Works, and is worth knowing.
    NOTE = "note"
    #: Works, but slower than it could.
    SLOW = "slow"
    #: Does not work, or is open to somebody whom it should be closed to.
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: The check's name.
        level: How bad it is.
        message: What is so; never a secret.
        hint: What to do about it.
    """

    check: str
    level: Level
    message: str
    hint: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON shows it."""
        return {**asdict(self), "level": self.level.value}
