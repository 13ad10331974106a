"""``zfast token``: what a token or a key would be allowed, rule by rule."""

from __future__ import annotations

import json as json_module
import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from zfast.cli.key_options import Environment, Flag, Folder, KeyName, settings_of
from zfast.errors import AccessDeniedError, ConfigError

if TYPE_CHECKING:
    from zfast.security.policy import Decision, KeyFacts, TokenFacts
    from zfast.security.settings import SecuritySettings

app = App(
    name="token",
    help="See what a bearer token, or a key, is allowed.",
    help_flags=["--help", "-h"],
    version_flags=[],
    result_action="return_value",
)


@app.command
def check(
    token: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    /,
    *,
    key: KeyName | None = None,
    environment: Environment = None,
    folder: Folder = None,
    json: Flag = False,
) -> None:
    """Explain what the policy of this host decides, rule by rule.

    Exit status 1 when the answer is no.

    Parameters
    ----------
    token
        The token; - reads it from standard input, where no list of processes shows it.
    key
        Instead of a token: an authorized key's name, fingerprint, .pub file or the key itself.
    environment
        Where.  [default: ZFAST_ENVIRONMENT, else default]
    folder
        The key folder.
    json
        Print JSON and nothing else.
    """
    if (token is None) == (key is None):
        raise ConfigError("check one thing", hint="give a TOKEN (or -), or --key KEY")

    settings = settings_of(folder, environment)
    from zfast.security.sources import load_policy

    environment, policy = settings.environment, load_policy(settings)
    facts: KeyFacts | TokenFacts
    if key is not None:
        facts, about = _key_facts(settings, key)
    else:
        from zfast.security.policy import TokenFacts
        from zfast.security.tokens import TokenDesk

        text = sys.stdin.read().strip() if token == "-" else str(token)
        issuer, claims = TokenDesk().check(policy.issuers, text)
        facts = TokenFacts(issuer, claims)
        about = {"subject": f"{issuer}:{claims['sub']}", "expires": claims["exp"]}
    decision = policy.decide(facts, environment)
    _report(decision, {**about, "environment": environment}, json)
    if decision.role is None:
        raise AccessDeniedError(
            f"no role in {environment}", hint="add a rule that matches to policy.toml"
        )


def _key_facts(settings: SecuritySettings, what: str) -> tuple[KeyFacts, dict[str, object]]:
    from zfast.security.key_folder import KeyFolder
    from zfast.security.policy import KeyFacts
    from zfast.security.sources import load_authorized

    keys, authorized = KeyFolder(settings.key_folder), load_authorized(settings)
    public = keys.find(what, authorized)
    if public.z85 in keys.revoked():
        raise AccessDeniedError(f"key {public.fingerprint} is revoked")
    name = authorized.get(public.z85)
    if name is None:
        raise AccessDeniedError(
            f"key {public.fingerprint} is not authorized", hint="'zfast keys authorize' lets it in"
        )
    return KeyFacts(name, public.fingerprint), {"subject": name, "key": public.fingerprint}


def _report(decision: Decision, about: dict[str, object], json: bool) -> None:
    role = decision.role
    verbs = sorted(verb.value for verb in role.verbs) if role else []
    if json:
        steps = [
            {"rule": step.rule, "matched": step.matched, "why": step.why} for step in decision.steps
        ]
        answer = {**about, "role": role.value if role else None, "verbs": verbs, "steps": steps}
        print(json_module.dumps(answer, indent=2))
        return
    for name, value in about.items():
        print(f"{name:<12} {value}")
    for number, step in enumerate(decision.steps, 1):
        print(f"rule {number:<7} {'✓' if step.matched else '✗'} {step.rule}: {step.why}")
    print(f"{'role':<12} {role.value if role else 'none: no rule matches'}")
    print(f"{'may':<12} {', '.join(verbs) or 'nothing'}")
