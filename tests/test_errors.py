"""The error tree: what it tells, what it is caught as, and that it survives another process."""

from __future__ import annotations

import copy
import pickle

import pytest

from zfast import errors
from zfast.codec import decode, encode

EXAMPLES = [
    errors.ConfigError("m", detail="d", hint="h"),
    errors.ProtocolError("m", frame_index=2, offset=7),
    errors.SendTimeoutError("m", errno=11, hint="h"),
    errors.KeyNotFoundError("m", errno=2),
    errors.WorkerDiedError("m", detail="d"),
    errors.ResultLostError("m", hint="h"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "transport",
    [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, lambda e: decode(encode(e))],
    ids=["pickle", "copy", "codec"],
)
def test_an_error_survives_with_all_it_knows(error, transport):
    twin = transport(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    for name in ("message", "detail", "hint", "errno", "frame_index", "offset"):
        assert getattr(twin, name, None) == getattr(error, name, None), name


def test_messages_say_what_happened_and_what_to_do():
    assert str(errors.ConfigError("what", detail="why", hint="do this")) == "what – why – do this"


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.TransportError, OSError),
        (errors.RecvTimeoutError, TimeoutError),
        (errors.KeyNotFoundError, KeyError),
        (errors.StoreError, OSError),
    ],
)
def test_errors_are_caught_as_the_builtins_they_are(error, builtin):
    assert issubclass(error, builtin)
    assert issubclass(error, errors.ZfastError)
