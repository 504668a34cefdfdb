"""gwt.protocol.codes: the map of error codes, and which draft is spoken."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwt.protocol import codes

LAST = 0x52E5AC983162


@pytest.mark.parametrize(
    "code, wire",
    [
        (0, 0x52E4A40FA8DB),
        (29, 0x52E4A40FA8F8),
        (30, 0x52E4A40FA8FA),
        (31, 0x52E4A40FA8FB),
        (255, 0x52E4A40FA9E2),
        (256, 0x52E4A40FA9E3),
        (70000, 0x52E4A40FA8DB + 70000 + 2333),
        (2**32 - 1, LAST),
    ],
)
def test_application_code_has_its_place_on_the_wire_and_comes_back(code, wire):
    assert codes.wire_code(code) == wire
    assert codes.application_code(wire) == code


@given(st.integers(0, 2**32 - 1))
def test_every_application_code_survives_the_round_trip(code):
    wire = codes.wire_code(code)
    assert 0x52E4A40FA8DB <= wire <= LAST
    assert (wire - 0x21) % 0x1F, "a reserved code carries nothing"
    assert codes.application_code(wire) == code


@given(st.integers(0, 2**32 - 2))
def test_neighbours_stay_neighbours_around_the_reserved_codes(code):
    assert codes.wire_code(code + 1) - codes.wire_code(code) in (1, 2)


@pytest.mark.parametrize(
    "wire",
    [
        0,
        0x10C,
        codes.WT_SESSION_GONE,
        0x52E4A40FA8DB - 1,
        LAST + 1,
        2**62 - 1,
        # Reserved: 0x1f * n + 0x21.
        0x52E4A40FA8F9,
        0x52E4A40FA8F9 + 0x1F,
    ],
)
def test_wire_code_out_of_range_or_reserved_carries_no_application_code(wire):
    assert codes.application_code(wire) is None


DRAFTS = {
    16: codes.SETTING_WT_ENABLED,
    14: codes.SETTING_WT_MAX_SESSIONS,
    12: codes.SETTING_WEBTRANSPORT_MAX_SESSIONS,
    2: codes.SETTING_ENABLE_WEBTRANSPORT,
}


@pytest.mark.parametrize(
    "offered",
    [c for n in range(1, 5) for c in itertools.combinations(DRAFTS, n)],
    ids=lambda numbers: "+".join(map(str, numbers)),
)
def test_client_takes_the_best_draft_of_each_combination(offered):
    draft = codes.best_draft({DRAFTS[number]: 1 for number in offered})
    assert draft is not None
    assert draft.number == max(offered)


def test_setting_of_zero_offers_nothing():
    assert codes.best_draft({setting: 0 for setting in DRAFTS.values()}) is None
    assert codes.best_draft({}) is None


@pytest.mark.parametrize(
    "protocol, draft02, settings, number",
    [
        (b"webtransport-h3", False, {}, 16),
        (b"webtransport-h3", True, {DRAFTS[2]: 1}, 16),
        (b"webtransport", False, {DRAFTS[16]: 1, DRAFTS[14]: 1}, 14),
        (b"webtransport", False, {DRAFTS[14]: 9, DRAFTS[12]: 9}, 14),
        (b"webtransport", False, {DRAFTS[12]: 9, DRAFTS[2]: 1}, 12),
        (b"webtransport", False, {DRAFTS[2]: 1}, 2),
        (b"webtransport", False, {}, 2),
        # Chromium with draft 07 switched on sends the header of draft 02 all the same.
        (b"webtransport", True, {DRAFTS[12]: 16, DRAFTS[2]: 1}, 2),
    ],
)
def test_server_tells_the_draft_of_each_request(protocol, draft02, settings, number):
    assert codes.session_draft(protocol, draft02, settings).number == number
