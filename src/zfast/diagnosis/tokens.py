"""Is there a bearer token to present, and how long is it good?"""

from __future__ import annotations

import time
from collections.abc import Iterator

from zfast.diagnosis.finding import Finding, Level
from zfast.errors import ConfigError
from zfast.security.private_files import read_private_file
from zfast.security.settings import SecuritySettings

_CHECK = "token"
#: What is left of a token that should have been renewed by now.
_SOON_S = 60.0


def check_token(settings: SecuritySettings) -> Iterator[Finding]:
    """Read the token's end; whether it is genuine is the server's to say."""
    path = settings.token_file
    if path is None:
        return
    try:
        import jwt

        text = read_private_file(path).decode("ascii", "replace").strip()
        claims = jwt.decode(text, options={"verify_signature": False, "verify_exp": False})
        left_s = float(claims["exp"]) - time.time()
    except ModuleNotFoundError as error:
        yield Finding(
            _CHECK, Level.PROBLEM, f"tokens need {error.name}", "pip install 'zfast[security]'"
        )
    except ConfigError as error:
        yield Finding(_CHECK, Level.PROBLEM, error.message, error.hint or "")
    except (jwt.PyJWTError, KeyError, TypeError, ValueError):
        yield Finding(
            _CHECK,
            Level.PROBLEM,
            f"{path} holds no token (JWT) with an end",
            "see ZFAST_TOKEN_FILE",
        )
    else:
        if left_s <= 0:
            yield Finding(
                _CHECK,
                Level.PROBLEM,
                f"the token in {path} has ended",
                "whoever mounts the file has to renew it",
            )
        elif left_s < _SOON_S:
            yield Finding(
                _CHECK, Level.NOTE, f"the token in {path} ends in {left_s:.0f} s", "renew it"
            )
        else:
            yield Finding(
                _CHECK, Level.OK, f"the token in {path} is good for {left_s / 60:.0f} min"
            )
