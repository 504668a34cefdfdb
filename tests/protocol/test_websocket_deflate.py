"""permessage-deflate: what is offered, accepted and declined; messages through it."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage
from wsproto.extensions import PerMessageDeflate

from gwt.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from gwt.protocol.deflate import (
    Compression,
    DeflateParams,
    Deflater,
    Inflater,
    as_compression,
    confirm,
    negotiate,
    offer,
    split_extensions,
)
from gwt.protocol.websocket import Message, WebSocketProtocol
from gwt.protocol.wshandshake import Agreement

KEEP = Compression(no_context_takeover=False)


class TestOptions:
    def test_names(self):
        assert as_compression(None) is None
        assert as_compression("deflate") == Compression()
        assert as_compression(KEEP) is KEEP

    @pytest.mark.parametrize("value", ["gzip", "", True, 6])
    def test_other_names(self, value):
        with pytest.raises(ConfigError):
            as_compression(value)

    @pytest.mark.parametrize(
        "options",
        [
            {"level": -1},
            {"level": 10},
            {"level": True},
            {"level": "6"},
            {"threshold": -1},
            {"max_window_bits": 8},
            {"max_window_bits": 16},
        ],
    )
    def test_values(self, options):
        with pytest.raises(ConfigError) as info:
            Compression(**options)
        assert info.value.field == next(iter(options))


class TestSplitting:
    @pytest.mark.parametrize(
        ("values", "extensions"),
        [
            ([], ()),
            ([""], ()),
            ([" , ,"], ()),
            (["a"], ("a",)),
            (["a, b;c=1 ; d , e"], ("a", "b;c=1 ; d", "e")),
            (["a", "b,c"], ("a", "b", "c")),
            (['a; b="x,y", c'], ('a; b="x,y"', "c")),
            (['a; b="x\\",y", c'], ('a; b="x\\",y"', "c")),
        ],
    )
    def test_lists(self, values, extensions):
        assert split_extensions(values) == extensions

    @pytest.mark.parametrize(
        "value",
        [
            "a b",
            ";",
            "a;",
            "a;=1",
            "a; b=",
            'a; b="',
            'a; b="x',
            'a; b="x"y',
            "a=1",
            "a; b=1=2",
            "é",
            "a\x00",
            'a; b="\x00"',
            "(a)",
            ",".join(["a"] * 33),
        ],
    )
    def test_malformed(self, value):
        assert split_extensions([value]) is None

    @pytest.mark.parametrize("text", [" ", ",", ";", '"', "a;", 'a;b="', "a;b=\\", "\t "])
    def test_time_is_linear(self, text):
        split_extensions([text * 100_000])


PMD = "permessage-deflate"

ACCEPTED = {
    PMD: (KEEP, PMD),
    f"{PMD}; client_max_window_bits": (KEEP, PMD),
    f"{PMD};client_max_window_bits": (KEEP, PMD),
    "Permessage-Deflate": (KEEP, PMD),
    f"{PMD}; client_max_window_bits=15": (KEEP, f"{PMD}; client_max_window_bits=15"),
    f'{PMD}; client_max_window_bits="10"': (KEEP, f"{PMD}; client_max_window_bits=10"),
    f'{PMD}; client_max_window_bits="1\\0"': (KEEP, f"{PMD}; client_max_window_bits=10"),
    f"{PMD}; client_max_window_bits=8": (KEEP, f"{PMD}; client_max_window_bits=8"),
    f"{PMD}; server_max_window_bits=9": (KEEP, f"{PMD}; server_max_window_bits=9"),
    f"{PMD}; server_no_context_takeover": (KEEP, f"{PMD}; server_no_context_takeover"),
    f"{PMD}; client_no_context_takeover": (KEEP, f"{PMD}; client_no_context_takeover"),
    f"{PMD}; client_max_window_bits ": (
        Compression(),
        f"{PMD}; server_no_context_takeover; client_no_context_takeover",
    ),
    f"{PMD}; client_max_window_bits;": (None, None),
    f" {PMD} ; client_max_window_bits = 12": (
        Compression(max_window_bits=11, no_context_takeover=False),
        f"{PMD}; server_max_window_bits=11; client_max_window_bits=11",
    ),
    # The client does not say that it can do with a smaller window, so it is not asked to.
    f"{PMD}; server_max_window_bits=12": (
        Compression(max_window_bits=11, no_context_takeover=False),
        f"{PMD}; server_max_window_bits=11",
    ),
}


class TestNegotiating:
    @pytest.mark.parametrize("wanted", [key for key, (_, answer) in ACCEPTED.items() if answer])
    def test_offers_that_are_accepted(self, wanted):
        compression, answer = ACCEPTED[wanted]
        params, text = negotiate([wanted], compression)
        assert text == answer
        # And a client reads from the answer what the server means.
        options = Compression(
            no_context_takeover=params.server_no_context_takeover,
        )
        if "client_max_window_bits=8" not in text:
            got = confirm([text], options)
            assert got.server_max_window_bits == params.server_max_window_bits
            assert got.client_max_window_bits == params.client_max_window_bits

    @pytest.mark.parametrize(
        "parameters",
        [
            "client_max_window_bits=abc",
            'client_max_window_bits=""',
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=010",
            "client_max_window_bits=+10",
            "client_max_window_bits=1_0",
            "client_max_window_bits=10; client_max_window_bits=10",
            "server_max_window_bits",
            "server_max_window_bits=8",
            "server_max_window_bits=0",
            "server_no_context_takeover=1",
            "server_no_context_takeover; server_no_context_takeover",
            "client_no_context_takeover=true",
            "unknown",
            "client_no_context_takeovers",
            "Server_Max_Window_Bits=10",
        ],
    )
    def test_offers_that_are_declined(self, parameters):
        assert negotiate([f"{PMD}; {parameters}"], Compression()) is None
        # The next one counts, and nothing of a declined one sticks.
        params, _ = negotiate([f"{PMD}; {parameters}", PMD], KEEP)
        assert params == DeflateParams()

    def test_the_first_acceptable_offer_wins(self):
        offers = ["x-webkit", f"{PMD}; unknown", f"{PMD}; server_max_window_bits=10", PMD]
        params, text = negotiate(offers, KEEP)
        assert text == f"{PMD}; server_max_window_bits=10"
        assert params.server_max_window_bits == 10

    def test_nothing_to_accept(self):
        assert negotiate([], Compression()) is None
        assert negotiate([PMD], None) is None
        assert negotiate(["bbf-usp-protocol"], Compression()) is None

    @pytest.mark.parametrize("bits", range(9, 16))
    @pytest.mark.parametrize("forget", [False, True])
    def test_a_server_understands_what_a_client_offers(self, bits, forget):
        compression = Compression(no_context_takeover=forget, max_window_bits=bits)
        offers = split_extensions([offer(compression)])
        for ours in (Compression(), KEEP, Compression(max_window_bits=9)):
            params, text = negotiate(offers, ours)
            got = confirm(split_extensions([text]), compression)
            assert got.server_max_window_bits == params.server_max_window_bits <= bits
            assert got.client_max_window_bits == params.client_max_window_bits <= bits
            assert got.server_no_context_takeover is params.server_no_context_takeover
            assert got.client_no_context_takeover is params.client_no_context_takeover

    @pytest.mark.parametrize(
        "answer",
        [
            ["x-webkit"],
            [PMD, PMD],
            [f"{PMD}; unknown"],
            [f"{PMD}; server_max_window_bits"],
            [f"{PMD}; server_max_window_bits=16"],
            [f"{PMD}; client_max_window_bits"],
            [f"{PMD}; client_max_window_bits=7"],
            [f"{PMD}; server_no_context_takeover; server_no_context_takeover"],
        ],
    )
    def test_answers_that_fail(self, answer):
        with pytest.raises(RemoteProtocolError):
            confirm(answer, KEEP)

    def test_answers_that_do_not_keep_to_the_offer(self):
        for options, answer in (
            (None, PMD),
            (Compression(), PMD),
            (Compression(no_context_takeover=False, max_window_bits=10), PMD),
            (
                Compression(no_context_takeover=False, max_window_bits=10),
                f"{PMD}; server_max_window_bits=10; client_max_window_bits=11",
            ),
        ):
            with pytest.raises(RemoteProtocolError):
                confirm([answer], options)

    def test_no_answer(self):
        assert confirm([], Compression()) is None
        assert confirm([], None) is None


ALL_PARAMS = [
    DeflateParams(a, b, c, d)
    for a in (False, True)
    for b in (False, True)
    for c in (9, 12, 15)
    for d in (9, 12, 15)
]


def ends(params: DeflateParams, **options) -> tuple[WebSocketProtocol, WebSocketProtocol]:
    agreement = Agreement(None, params)
    compression = Compression(**options)
    return tuple(
        WebSocketProtocol(is_client, agreement=agreement, compression=compression, now=0.0)
        for is_client in (True, False)
    )


def carry(sender: WebSocketProtocol, receiver: WebSocketProtocol) -> tuple[list, int]:
    wire = b"".join(sender.data_to_send())
    return receiver.receive_data(wire, 0.0, limit=10_000), len(wire)


class TestMessages:
    @pytest.mark.parametrize("params", ALL_PARAMS)
    def test_there_and_back(self, params):
        client, server = ends(params, threshold=0)
        text = "".join(f"line {i}: some text\n" for i in range(2000))
        for message in ("", text, b"", text.encode(), "x", text):
            for sender, receiver in ((client, server), (server, client)):
                sender.send(message)
                events, size = carry(sender, receiver)
                assert events == [Message(message)]
                assert size < len(message) / 3 + 20

    @pytest.mark.parametrize("params", ALL_PARAMS)
    def test_fragments_arrive_as_they_are_sent(self, params):
        client, server = ends(params)
        for sender, receiver in ((client, server), (server, client)):
            receiver.fragments = True
            for _ in range(2):
                for i, part in enumerate(("hello ", "", "world", "")):
                    sender.send_fragment(part, text=True, first=i == 0, final=i == 3)
                    events, _ = carry(sender, receiver)
                    assert "".join(event.data for event in events) == part
                assert events[-1].finished

    def test_short_messages_are_sent_as_they_are(self):
        client, server = ends(DeflateParams(), threshold=100)
        server.send("x" * 99)
        assert server.data_to_send() == [b"\x81\x63" + b"x" * 99]
        server.send("x" * 100)
        [frame] = server.data_to_send()
        assert frame[0] == 0xC1 and len(frame) < 20
        assert client.receive_data(frame, 0.0) == [Message("x" * 100)]

    def test_the_context_makes_the_second_message_smaller(self):
        message = bytes(range(256)) * 2
        sizes = {}
        for forget in (False, True):
            _, server = ends(DeflateParams(server_no_context_takeover=forget))
            server.send(message)
            server.send(message)
            sizes[forget] = [len(frame) for frame in server.data_to_send()]
        assert sizes[True][0] == sizes[True][1] == sizes[False][0]
        assert sizes[False][1] < sizes[False][0] / 5

    def test_without_context_nothing_is_kept(self):
        params = DeflateParams(True, True)
        deflater = Deflater(params, Compression(), False)
        inflater = Inflater(params, True)
        data = deflater.compress(b"x" * 1000, final=True)
        assert inflater.inflate(data, 1000) + inflater.finish(0) == b"x" * 1000
        assert deflater._zlib is None
        assert inflater._zlib is None

    def test_a_window_that_zlib_does_not_have(self):
        client, _ = ends(DeflateParams(client_max_window_bits=8), threshold=0)
        client.send(b"x" * 1000)
        client.send_fragment(b"x" * 1000, text=False, first=True, final=False)
        first, second = client.data_to_send()
        assert first[0] == 0x82 and second[0] == 0x02
        deflater = Deflater(DeflateParams(client_max_window_bits=8), Compression(), True)
        with pytest.raises(LocalProtocolError):
            deflater.compress(b"x", final=True)

    def test_a_peer_that_says_8_and_compresses_with_9(self):
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -9)
        # The second half is a copy from as far as only a window of 512 bytes reaches.
        block = bytes((i * i * 7 + i // 3) & 255 for i in range(250))
        data = block + bytes(130) + block
        wire = (squeeze.compress(data) + squeeze.flush(zlib.Z_SYNC_FLUSH))[:-4]
        inflater = Inflater(DeflateParams(client_max_window_bits=8), False)
        assert inflater.inflate(wire, 1000) + inflater.finish(0) == data

    @pytest.mark.parametrize("level", range(10))
    def test_levels(self, level):
        client, server = ends(DeflateParams(), level=level, threshold=0)
        client.send(b"x" * 1000)
        assert carry(client, server)[0] == [Message(b"x" * 1000)]


messages = st.lists(st.one_of(st.text(max_size=200), st.binary(max_size=200)), max_size=6)


@given(
    data=messages,
    params=st.sampled_from(ALL_PARAMS),
    threshold=st.sampled_from([0, 20]),
    is_client=st.booleans(),
)
def test_round_trips(data, params, threshold, is_client):
    client, server = ends(params, threshold=threshold)
    sender, receiver = (client, server) if is_client else (server, client)
    for message in data:
        sender.send(message)
    assert carry(sender, receiver)[0] == [Message(message) for message in data]


def wsproto_peer(params: DeflateParams, is_client: bool) -> Connection:
    extension = PerMessageDeflate(
        client_no_context_takeover=params.client_no_context_takeover,
        server_no_context_takeover=params.server_no_context_takeover,
        client_max_window_bits=params.client_max_window_bits,
        server_max_window_bits=params.server_max_window_bits,
    )
    extension.finalize("permessage-deflate")
    return Connection(ConnectionType.CLIENT if is_client else ConnectionType.SERVER, [extension])


@given(data=messages, params=st.sampled_from(ALL_PARAMS), is_client=st.booleans())
def test_with_wsproto_at_the_other_end(data, params, is_client):
    ours = ends(params, threshold=0)[0 if is_client else 1]
    peer = wsproto_peer(params, not is_client)
    for message in data:
        ours.send(message)
        peer.receive_data(b"".join(ours.data_to_send()))
        [event] = peer.events()
        assert event.data == message
        # Of two empty messages in a row wsproto compresses the second to nothing.
        kind = TextMessage if isinstance(message, str) else BytesMessage
        for _ in range(2):
            wire = peer.send(kind(data=message))
            assert ours.receive_data(wire, 0.0) == [Message(message)]
