"""gwt.protocol.requests: the headers of a session's request and answer, checked and built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import codes, requests
from gwt.protocol.events import SessionRequested

GOOD = {
    b":method": b"CONNECT",
    b":protocol": b"webtransport",
    b":scheme": b"https",
    b":authority": b"example.test:4433",
    b":path": b"/chat?room=1",
}
BY_NUMBER = {draft.number: draft for draft in codes.DRAFTS}


def parse(*extra, without=(), **changes):
    values = {**GOOD, **{b":" + name.encode(): value for name, value in changes.items()}}
    return requests.parse_request(
        0, [item for item in values.items() if item[0] not in without] + list(extra)
    )


def test_good_request_becomes_an_event_with_all_it_said():
    event = parse((b"origin", b"https://example.test"), (b"wt-available-protocols", b'"a", "b"'))
    assert isinstance(event, SessionRequested)
    assert (event.authority, event.path) == ("example.test:4433", "/chat?room=1")
    assert event.origin == "https://example.test"
    assert event.subprotocols == ("a", "b")
    assert (b":method", b"CONNECT") in event.headers
    assert parse().origin is None


@pytest.mark.parametrize("name", [b":scheme", b":authority", b":path"])
def test_request_without_a_pseudo_header_is_malformed(name):
    assert parse(without=[name]) == f"{name.decode()} is missing"
    assert parse(**{name.decode()[1:]: b""}) == f"{name.decode()} is missing"


@pytest.mark.parametrize(
    "changes",
    [
        {"scheme": b"http"},
        {"scheme": b"HTTPS"},
        {"path": b"chat"},
        {"path": b"*"},
        {"path": b"/a#b"},
        {"path": "/ä".encode()},
        {"authority": b"a/b"},
        {"authority": b"user@host"},
        {"authority": "hößt".encode()},
        {"authority": b"a b"},
    ],
)
def test_request_with_an_impossible_pseudo_header_is_malformed(changes):
    assert isinstance(parse(**changes), str)


def test_request_with_two_origins_or_one_that_is_not_ascii_is_malformed():
    assert parse((b"origin", b"https://a"), (b"origin", b"https://a")) == "origin is given twice"
    assert isinstance(parse((b"origin", "https://ä".encode())), str)


@pytest.mark.parametrize(
    "headers, wanted",
    [
        (GOOD, True),
        ({**GOOD, b":protocol": b"webtransport-h3"}, True),
        ({**GOOD, b":protocol": b"websocket"}, False),
        ({b":method": b"CONNECT", b":authority": b"a"}, False),
        ({**GOOD, b":method": b"GET"}, False),
    ],
)
def test_only_extended_connect_for_webtransport_asks_for_a_session(headers, wanted):
    assert requests.is_session_request(headers.items()) is wanted


@pytest.mark.parametrize(
    "values, names",
    [
        ([], ()),
        ([b'"foo", "bar"'], ("foo", "bar")),
        ([b"foo, bar"], ("foo", "bar")),
        ([b'"foo"', b'"bar"'], ("foo", "bar")),
        ([b'"a", "a"'], ("a",)),
        ([b'"with \\"quotes\\" and \\\\"'], ('with "quotes" and \\',)),
        ([b'"a";q=1;b="x,y", c;d'], ("a", "c")),
        ([b'""'], ("",)),
        ([b""], ()),
        ([b"1, 2"], ()),
        ([b'"open'], ()),
        ([b'"a",'], ()),
        ([b'"a" "b"'], ()),
        ([b'"a", \xff'], ()),
        ([b", ".join(b'"%d"' % n for n in range(65))], ()),
    ],
)
def test_subprotocols_are_strings_or_tokens_and_ill_formed_lists_offer_none(values, names):
    assert requests.parse_subprotocols(values) == names


@given(st.lists(st.binary(max_size=100), max_size=3))
def test_any_subprotocol_header_is_parsed_or_ignored(values):
    assert isinstance(requests.parse_subprotocols(values), tuple)


def test_long_hostile_header_takes_no_time():
    # A pattern that backtracks would never come back from these.
    for value in (b'"' + b"\\\\" * 8000, b"a;" + b"b=" * 8000, b" " * 16000, b'"a";' * 4000):
        requests.parse_subprotocols([value])


SF_CHARACTERS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)


@given(st.lists(SF_CHARACTERS, min_size=1, max_size=5, unique=True))
def test_offer_comes_back_from_the_quoted_form(names):
    draft = BY_NUMBER[16]
    headers = requests.build_request(draft, "a", "/", subprotocols=names)
    assert requests.parse_subprotocols([dict(headers)[draft.offer_header]]) == tuple(names)


@pytest.mark.parametrize("number", BY_NUMBER)
def test_request_and_answer_have_the_form_of_their_draft(number):
    draft = BY_NUMBER[number]
    request = requests.build_request(
        draft,
        "example.test",
        "/p",
        origin="https://o",
        subprotocols=["a", "b"],
        headers=[(b"x", b"y")],
    )
    fields = dict(request)
    assert fields[b":protocol"] == (b"webtransport-h3" if number == 16 else b"webtransport")
    assert fields[b"origin"] == b"https://o"
    assert fields[b"x"] == b"y"
    assert (codes.DRAFT02_REQUEST in request) == (number == 2)
    assert fields[b"wt-available-protocols"] == (b"a, b" if number == 12 else b'"a", "b"')
    assert isinstance(requests.parse_request(0, request), SessionRequested)

    response = requests.build_response(draft, subprotocol="b", headers=[(b"x", b"y")])
    assert response[0] == (b":status", b"200")
    assert (codes.DRAFT02_RESPONSE in response) == (number == 2)
    assert requests.chosen_subprotocol(response, ["a", "b"]) == "b"


@pytest.mark.parametrize(
    "headers, chosen",
    [
        ([(b"wt-protocol", b'"a"')], "a"),
        ([(b"wt-protocol", b"a")], "a"),
        ([(b"webtransport-subprotocol", b"a")], "a"),
        ([(b"wt-protocol", b'"never offered"')], None),
        ([(b"wt-protocol", b'"a", "b"')], None),
        ([], None),
    ],
)
def test_choice_counts_only_when_it_is_one_that_was_offered(headers, chosen):
    assert requests.chosen_subprotocol(headers, ("a", "b")) == chosen


@pytest.mark.parametrize(
    "name, value",
    [
        ("", "x"),
        ("a b", "x"),
        ("a:b", "x"),
        (":path", "x"),
        ("ä", "x"),
        ("x", "a\r\nb: c"),
        ("x", "a\0"),
        ("Connection", "close"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "x"),
        ("keep-alive", "x"),
        ("TE", "gzip"),
    ],
)
def test_header_that_http3_cannot_carry_is_refused(name, value):
    with pytest.raises(ValueError):
        requests.encode_headers({name: value})


def test_headers_are_lowered_stripped_and_encoded():
    assert requests.encode_headers([("X-Name", " \tvälue "), ("x", "")]) == [
        (b"x-name", "välue".encode("latin-1")),
        (b"x", b""),
    ]


def test_decoded_headers_of_one_name_are_joined():
    headers = [(b"a", b"1"), (b"b", b"\xe4"), (b"a", b"2")]
    assert requests.decode_headers(headers) == {"a": "1, 2", "b": "ä"}


@pytest.mark.parametrize("number", BY_NUMBER)
def test_tokens_are_an_offer_up_to_draft_12_only(number):
    draft = BY_NUMBER[number]
    offers = [(b"wt-available-protocols", b"a, b")]
    event = requests.parse_request(0, [*GOOD.items(), *offers], draft)
    assert event.subprotocols == (("a", "b") if number < 13 else ())
    chosen = [(b"wt-protocol", b"a")]
    found = requests.chosen_subprotocol(chosen, ["a"], tokens=draft.tokens)
    assert found == ("a" if number < 13 else None)
    mixed = [(b"wt-available-protocols", b'"a", b')]
    event = requests.parse_request(0, [*GOOD.items(), *mixed], draft)
    assert event.subprotocols == (("a", "b") if number < 13 else ())


def test_an_offer_under_the_name_of_draft_09_is_answered_under_its_name_and_in_its_form():
    draft = BY_NUMBER[12]
    offer = [(b"webtransport-subprotocols-available", b"a, b")]
    choice = requests.choice_header(draft, offer)
    response = requests.build_response(draft, subprotocol="b", choice=choice)
    assert (b"webtransport-subprotocol", b"b") in response
    both = [*offer, (b"wt-available-protocols", b"a, b")]
    assert requests.choice_header(draft, both) == b"wt-protocol"
    assert requests.choice_header(draft, []) == b"wt-protocol"


def test_a_name_that_is_no_token_is_quoted_even_where_tokens_are_the_form():
    response = requests.build_response(BY_NUMBER[12], subprotocol="b c")
    assert (b"wt-protocol", b'"b c"') in response
