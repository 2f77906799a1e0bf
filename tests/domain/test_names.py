"""Names are DNS labels, and a refusal proposes one that is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.domain.errors import Invalid
from inferplane.domain.names import check_name, namespace_for

_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("name", ["a", "sklearn-iris", "1demo", "a" * 63, "team-omega", "a--b"])
def test_names_that_are_allowed(name: str) -> None:
    assert check_name(name, "endpointName") == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "needed"),
        ("a" * 64, "64 characters"),
        ("Demo", "cannot be a name"),
        ("demo_1", "cannot be a name"),
        ("demo.v1", "cannot be a name"),
        ("-demo", "cannot be a name"),
        ("demo-", "cannot be a name"),
        ("de mo", "cannot be a name"),
        ("demo\n", "cannot be a name"),
        ("dëmo", "cannot be a name"),
        ("\uff11demo", "cannot be a name"),
    ],
)
def test_names_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        check_name(name, "endpointName")
    assert (caught.value.field, caught.value.reason) == ("endpointName", "InvalidName")


def test_a_refusal_proposes_a_name() -> None:
    with pytest.raises(Invalid) as caught:
        check_name("My Model_v1", "endpointName")
    assert caught.value.next_action.endswith("For instance: my-model-v1")


@pytest.mark.parametrize(
    ("workspace", "endpoint", "suffix", "namespace"),
    [
        ("team-omega", "deepankar-hf-llm3", "ah1cex", "team-omega-deepankar-hf-ah1cex"),
        ("team-omega", "eric-gpt4-2", "y5n6ka", "team-omega-eric-gpt4-2-y5n6ka"),
        ("team-omega", "mini-gpt4", "l1uh5g", "team-omega-mini-gpt4-l1uh5g"),
    ],
)
def test_the_namespace_is_derived_as_it_always_was(
    workspace: str, endpoint: str, suffix: str, namespace: str
) -> None:
    assert namespace_for(workspace, endpoint, suffix) == namespace


@given(_LABEL, _LABEL, st.from_regex(r"[a-z0-9]{6}", fullmatch=True))
def test_a_namespace_is_always_a_label(workspace: str, endpoint: str, suffix: str) -> None:
    namespace = namespace_for(workspace, endpoint, suffix)
    assert check_name(namespace, "namespace") == namespace
    assert namespace.endswith(f"-{suffix}")


@given(st.text())
def test_any_text_is_a_label_or_refused(text: str) -> None:
    try:
        blamed, name = "f", check_name(text, "f")
    except Invalid as refusal:
        blamed, name = refusal.field, "a"
    assert blamed == "f"
    assert re.fullmatch(r"[a-z0-9-]{1,63}", name, re.ASCII)
