"""Rules for one key that are added to a policy, and give it what was asked for and no more."""

from __future__ import annotations

from zfast.errors import ConfigError
from zfast.security.policy import KeyFacts, Policy, parse_policy
from zfast.security.roles import Role


def with_key_rule(
    text: str, facts: KeyFacts, role: Role, environment: str, *, is_known: bool
) -> str:
    """A policy's text with a rule for one key at its end; as it is where it has that one already.

    Args:
        is_known: The key is authorized under this name: it may keep the roles that it has.

    Raises:
        ConfigError: An earlier rule gives the name another role, or rules would give it roles
            elsewhere too, which it does not have yet.
    """
    rule = _key_rule(facts.name, role, environment)
    changed = text if rule in text else text + rule
    _see_that_it_decides(changed, facts, role, environment)
    has = parse_policy(text) if is_known else Policy()
    _see_that_no_other_does(changed, facts, environment, has)
    return changed


def _key_rule(name: str, role: Role, environment: str) -> str:
    return f'\n[[rule]]\nkey = "{name}"\nrole = "{role.value}"\nenvironments = ["{environment}"]\n'


def _see_that_it_decides(policy: str, facts: KeyFacts, role: Role, environment: str) -> None:
    decision = parse_policy(policy).decide(facts, environment)
    if decision.role is not role:
        raise ConfigError(
            f"an earlier rule decides on {facts.name} in {environment}: {decision.rule}",
            hint="choose another --name, or change that rule in policy.toml",
        )


def _see_that_no_other_does(policy: str, facts: KeyFacts, environment: str, has: Policy) -> None:
    """The key gets a role in the environment, and elsewhere none but those it ``has``."""
    had = has.decide_everywhere(facts)
    for other, decision in parse_policy(policy).decide_everywhere(facts).items():
        if other not in (environment, *had):
            raise ConfigError(
                f"{facts.name} would have a role elsewhere too: {decision.rule}",
                hint="choose another --name; or, if it is to have all that the rules say of this "
                "one, authorize it without --role",
            )
