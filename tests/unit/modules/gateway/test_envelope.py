"""The keys around the inputs of a request."""

from __future__ import annotations

from typing import Any

import pytest

from modules.gateway.envelope import EVENTS, check_id, envelope_of, new_id
from modules.gateway.refusal import Refusal

HOOK = "https://example.com/hook?a=1"


@pytest.mark.parametrize("name", ["a", "0", "wm4kfmkr3cq2rsa8xq9p", "b9f6339e-7d6d-4a0f-9b8e-3f0c2f7d0a11", "x" * 64])
def test_ids_as_clients_of_cog_choose_them_are_taken(name: str) -> None:
    assert envelope_of({"id": name}).id == name == envelope_of({}, name).id


@pytest.mark.parametrize("name", ["", "x" * 65, ".", "..", "a/b", "a b", "a\n", "é", "a.b", 5, ["a"], True])
def test_an_id_that_is_no_safe_name_is_refused(name: Any) -> None:
    with pytest.raises(Refusal) as refused:
        check_id(name, ("body", "id"))
    assert (refused.value.status, refused.value.where) == (422, ("body", "id"))


def test_a_request_without_id_gets_one_of_its_own() -> None:
    assert new_id() != new_id() and check_id(envelope_of({}).id, ())


def test_the_id_in_the_body_must_be_that_in_the_path() -> None:
    with pytest.raises(Refusal, match="id in the path"):
        envelope_of({"id": "a"}, "b")


def test_what_is_null_is_left_out() -> None:
    given = envelope_of(dict.fromkeys(("id", "input", "webhook", "webhook_events_filter", "context")), "a")
    assert (given.id, given.inputs, given.webhook, given.events) == ("a", {}, "", EVENTS)


@pytest.mark.parametrize(
    ("body", "key", "words"),
    [
        ({"inputs": {}}, "inputs", "did you mean 'input'?"),
        ({"xyz": 1}, "xyz", "the keys are id, input"),
        ({"xyz": None}, "xyz", "is not known"),
        ({"output_file_prefix": "x"}, "output_file_prefix", "has no effect"),
        ({"context": {"a": "b"}}, "context", "has no effect"),
        ({"input": [1]}, "input", "must be an object"),
        ({"webhook": "ftp://example.com"}, "webhook", "http(s)"),
        ({"webhook": "http://"}, "webhook", "http(s)"),
        ({"webhook": "http://[::1"}, "webhook", "http(s)"),
        ({"webhook": "http://a:99999/"}, "webhook", "http(s)"),
        ({"webhook": "http://a\r\nX: y"}, "webhook", "http(s)"),
        ({"webhook": 5}, "webhook", "http(s)"),
        ({"webhook": HOOK, "webhook_events_filter": ["end"]}, "webhook_events_filter", "start, output"),
        ({"webhook": HOOK, "webhook_events_filter": []}, "webhook_events_filter", "start, output"),
        ({"webhook": HOOK, "webhook_events_filter": [["start"]]}, "webhook_events_filter", "start, output"),
        ({"webhook_events_filter": ["start"]}, "webhook_events_filter", "needs a webhook"),
    ],
)
def test_a_wrong_key_is_refused_by_name(body: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(Refusal) as refused:
        envelope_of(body)
    assert refused.value.where == ("body", key) and words in refused.value.problem


@pytest.mark.parametrize("body", [None, [], "x", 1, True])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(Refusal, match="must be an object"):
        envelope_of(body)


def test_a_webhook_is_kept_as_it_is() -> None:
    given = envelope_of({"webhook": HOOK, "webhook_events_filter": ["completed"]})
    assert (given.webhook, given.events) == (HOOK, ("completed",))
