"""The policy: which rule decides, what each role may do, and what is refused as a mistake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfast.errors import ConfigError
from zfast.security.policy import KeyFacts, Policy, TokenFacts, parse_policy
from zfast.security.roles import Role, Verb

TABLE = {
    #            subscribe submit claim put  get  delete admin
    "Viewer":    (True,  False, False, False, False, False, False),
    "Runner":    (True,  True,  False, False, True,  False, False),
    "Developer": (True,  True,  False, True,  True,  True,  False),
    "Owner":     (True,  True,  False, True,  True,  True,  True),
    "Worker":    (False, False, True,  True,  True,  False, False),
}  # fmt: skip

POLICY = """
[[issuer]]
name = "okta"
issuer = "https://acme.okta.com/oauth2/aus1"
audience = "zfast://prod"

[[rule]]
key = "worker-9"
role = "Viewer"
environments = ["staging"]

[[rule]]
key = "worker-*"
role = "Worker"
environments = ["prod", "staging"]

[[rule]]
issuer = "okta"
claim = "groups"
matches = "prefect-prod-*"
role = "Developer"
environments = ["prod"]

[[rule]]
issuer = "okta"
claim = ["https://sts.amazonaws.com/", "principal_tags", "team"]
matches = "data"
role = "Runner"
environments = ["*"]
"""


@pytest.mark.parametrize("role", TABLE)
def test_each_role_may_do_exactly_what_the_table_says(role):
    assert tuple(verb in Role(role).verbs for verb in Verb) == TABLE[role]


def test_the_roles_of_people_contain_each_other():
    assert Role.VIEWER.verbs < Role.RUNNER.verbs < Role.DEVELOPER.verbs < Role.OWNER.verbs


@pytest.mark.parametrize(
    ("facts", "environment", "role"),
    [
        (KeyFacts("worker-1", "f"), "prod", "Worker"),
        (KeyFacts("worker-1", "f"), "dev", None),
        (KeyFacts("worker-9", "f"), "staging", "Viewer"),
        (KeyFacts("worker-9", "f"), "prod", "Worker"),
        (KeyFacts("other", "f"), "prod", None),
        (TokenFacts("okta", {"groups": ["x", "prefect-prod-developer"]}), "prod", "Developer"),
        (TokenFacts("okta", {"groups": "prefect-prod-developer"}), "prod", "Developer"),
        (TokenFacts("okta", {"groups": ["prefect-prod-developer"]}), "staging", None),
        (TokenFacts("okta", {"groups": [["prefect-prod-developer"]]}), "prod", None),
        (TokenFacts("okta", {"groups": {"prefect-prod-developer": 1}}), "prod", None),
        (TokenFacts("evil", {"groups": ["prefect-prod-developer"]}), "prod", None),
        (
            TokenFacts(
                "okta", {"https://sts.amazonaws.com/": {"principal_tags": {"team": "data"}}}
            ),
            "any",
            "Runner",
        ),
        (
            TokenFacts("okta", {"https://sts.amazonaws.com/": {"request_tags": {"team": "data"}}}),
            "any",
            None,
        ),
    ],
)
def test_the_first_rule_that_matches_decides(facts, environment, role):
    decision = parse_policy(POLICY).decide(facts, environment)
    assert (decision.role and decision.role.value) == role
    # Each rule that was asked says why.
    assert all(step.why for step in decision.steps)
    assert [step.matched for step in decision.steps] == [False] * (len(decision.steps) - 1) + [
        role is not None
    ]


@given(
    claims=st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=8), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_no_claims_break_it_and_only_matching_ones_have_a_role(claims):
    decision = parse_policy(POLICY).decide(TokenFacts("okta", claims), "prod")
    groups = claims.get("groups")
    has_group = any(
        isinstance(group, str) and group.startswith("prefect-prod-")
        for group in (groups if isinstance(groups, list) else [groups])
    )
    assert decision.role is None or has_group


def test_without_rules_nobody_has_a_role():
    assert Policy().decide(KeyFacts("worker-1", "f"), "prod").role is None


_ISSUER = '[[issuer]]\nname="a"\nissuer="https://x"\naudience="y"\n'
_RULE = '[[rule]]\nrole="Owner"\nenvironments=["prod"]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[rule]]\nrole =", "is not a policy"),
        ('[[rule]]\nrole="King"\nenvironments=["prod"]\nkey="a"', "King"),
        ('[[rule]]\nrole="Owner"\nenvironment=["prod"]\nkey="a"', "environment"),
        ('[[rule]]\nrole="Owner"\nenvironments=[]\nkey="a"', "names no environment"),
        (_RULE, "needs either key, or issuer, claim and matches"),
        (_RULE + 'key=""', "is for a key and for a token"),
        (_RULE + 'key="a"\nclaim="b"', "is for a key and for a token"),
        (_ISSUER + _RULE + 'issuer="a"\nclaim="sub"', "needs either key"),
        (_RULE + 'issuer="a"\nclaim="sub"\nmatches="*"', "which the policy does not have"),
        (
            _ISSUER
            + _RULE
            + 'issuer="a"\nclaim=["https://sts.amazonaws.com/","request_tags","r"]\n'
            'matches="*"',
            "whoever asks for the token chooses",
        ),
        (_ISSUER + _ISSUER, "two issuers have one name"),
        ('[[issuer]]\nname="a"\nissuer="http://x"\naudience="y"', "is not https"),
        ('[[issuer]]\nname="a"\nissuer="http://127.0.0.1.evil/"\naudience="y"', "is not https"),
        (_ISSUER + 'jwks_uri="file:///etc/passwd"', "is not https"),
        (_ISSUER + 'algorithms=["HS256"]', "HS256"),
        (_ISSUER + 'algorithms=["none"]', "none"),
        (_ISSUER + "algorithms=[]", "algorithms none"),
        (_ISSUER + "leeway_s=3600", "leeway_s"),
        ('[[issuer]]\nname="a"\nissuer="https://x"\naudience=""', "empty audience"),
        (b"\xff\xfe", "is not a policy"),
    ],
)
def test_a_policy_that_is_a_mistake_says_so(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_policy(text)
