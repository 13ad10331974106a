"""What there is to do, and which role may do it. Prefect's role names."""

from __future__ import annotations

from enum import Enum


class Verb(str, Enum):
    """One kind of request to a guarded socket."""

    SUBSCRIBE = "subscribe"
    SUBMIT = "submit"
    CLAIM = "claim"
    PUT = "put"
    GET = "get"
    DELETE = "delete"
    ADMIN = "admin"


class Role(str, Enum):
    """A bundle of verbs: Viewer ⊂ Runner ⊂ Developer ⊂ Owner; and Worker, beside them."""

    VIEWER = "Viewer"
    RUNNER = "Runner"
    DEVELOPER = "Developer"
    OWNER = "Owner"
    WORKER = "Worker"

    @property
    def verbs(self) -> frozenset[Verb]:
        """All that the role may do."""
        return _VERBS[self]


_VIEWER = frozenset({Verb.SUBSCRIBE})
_RUNNER = _VIEWER | {Verb.SUBMIT, Verb.GET}
_DEVELOPER = _RUNNER | {Verb.PUT, Verb.DELETE}
_VERBS = {
    Role.VIEWER: _VIEWER,
    Role.RUNNER: _RUNNER,
    Role.DEVELOPER: _DEVELOPER,
    Role.OWNER: _DEVELOPER | {Verb.ADMIN},
    # It reads its tasks' inputs and writes their results. It starts nothing and watches nobody.
    Role.WORKER: frozenset({Verb.CLAIM, Verb.GET, Verb.PUT}),
}
