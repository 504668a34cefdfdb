"""Options: refused by name when unknown, once under two names, or with a value they cannot have."""

from __future__ import annotations

import dataclasses
import ssl

import pytest

from gwt import errors
from gwt.config import ClientConfig, ServerConfig, TransportConfig, certificate_hash

BOTH = pytest.mark.parametrize("cls", [ServerConfig, ClientConfig])
DIGEST = bytes(range(32))


@BOTH
def test_defaults_are_valid_and_survive_the_way_through_a_dict(cls):
    config = cls()
    assert cls.from_dict(config_dict=config.to_dict()) == config


@BOTH
def test_a_config_cannot_be_changed_but_copied_with_changes(cls):
    config = cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.idle_timeout = 1.0
    changed = config.update(idle_timeout=1.0, max_streams=3)
    assert (changed.idle_timeout, changed.max_streams) == (1.0, 3)
    assert config.idle_timeout == cls().idle_timeout
    assert config.update() is config


@BOTH
@pytest.mark.parametrize("how", ["update", "from_dict"])
def test_unknown_option_is_refused_by_name(cls, how):
    with pytest.raises(errors.UnknownOption, match=f"{cls.__name__} has no option 'colour'") as exc:
        if how == "update":
            cls().update(colour="red")
        else:
            cls.from_dict({"colour": "red"})
    assert (exc.value.field, exc.value.value) == ("colour", "red")
    # Both of what a caller may expect of a wrong keyword.
    assert isinstance(exc.value, TypeError)
    assert isinstance(exc.value, ValueError)


def test_options_of_one_side_are_unknown_to_the_other():
    with pytest.raises(errors.UnknownOption, match="cafile"):
        ServerConfig().update(cafile=None)
    with pytest.raises(errors.UnknownOption, match="certfile"):
        ClientConfig().update(certfile=None)


@pytest.mark.parametrize(
    ("twin", "value", "field", "result"),
    [
        ("additional_headers", {"a": "b"}, "headers", {"a": "b"}),
        ("server_hostname", "example.org", "server_name", "example.org"),
        ("open_timeout", 3, "connect_timeout", 3),
        ("timeout", 3, "connect_timeout", 3),
        ("ca_certs", None, "cafile", None),
        ("user_agent_header", "x/1", "user_agent", "x/1"),
        ("verify_mode", ssl.CERT_NONE, "verify", False),
        ("verify_mode", ssl.CERT_REQUIRED, "verify", True),
        ("congestion_control_algorithm", "cubic", "congestion_control", "cubic"),
        ("connection_keepalive_timeout", 7, "keep_alive_interval", 7),
    ],
)
class TestTwins:
    def test_another_name_of_a_field_is_understood(self, twin, value, field, result):
        assert getattr(ClientConfig().update(**{twin: value}), field) == result
        assert getattr(ClientConfig.from_dict({twin: value}), field) == result

    def test_both_names_at_once_are_a_type_error(self, twin, value, field, result):
        for first, second in ((twin, field), (field, twin)):
            with pytest.raises(TypeError, match=f"{first} and {second} were both"):
                ClientConfig().update(**{first: value, second: value})


NUMBERS = [
    ("idle_timeout", [0, -1, "30", float("nan")]),
    ("close_timeout", [0, -0.5, "5"]),
    ("stream_creation_timeout", [0, "x"]),
    ("keep_alive_interval", [0]),
    ("pending_timeout", [-1]),
    ("datagram_max_age", [0]),
    ("initial_stream_window", [1023, 1.5, True, "16384"]),
    ("stream_window", [0, 2048.0]),
    ("session_window", [-1]),
    ("receive_pool", [-1]),
    ("max_incoming_streams", [7]),
    ("stream_send_buffer", [0]),
    ("connection_send_buffer", [0]),
    ("process_send_buffer", [0]),
    ("stream_send_floor", [0]),
    ("max_streams", [0, -1, True]),
    ("max_pending_streams", [-1]),
    ("max_pending_datagrams", [-1]),
    ("max_sessions_per_connection", [0]),
    ("datagram_queue", [0]),
    ("datagram_send_queue", [0]),
    ("max_field_section_size", [100]),
    ("socket_buffer", [0]),
    ("max_udp_payload", [1199, 16001, 0]),
    ("congestion_control", ["bbr", "", None]),
]
BAD = [(field, value) for field, values in NUMBERS for value in values]


@BOTH
@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_value_names_its_field(cls, field, value):
    with pytest.raises(errors.ConfigError, match=rf"^{field} must be .*\.$") as caught:
        cls(**{field: value})
    assert caught.value.field == field
    assert caught.value.value is value


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (ServerConfig, "stop_timeout", 0),
        (ServerConfig, "handshake_timeout", -1),
        (ServerConfig, "connection_idle_check_interval", 0),
        (ServerConfig, "max_connections", 0),
        (ServerConfig, "max_sessions", 0),
        (ServerConfig, "max_handlers", 0),
        (ServerConfig, "max_pending_handshakes", 0),
        (ServerConfig, "certfile", "no/such/file.pem"),
        (ClientConfig, "connect_timeout", 0),
        (ClientConfig, "client_sockets", 0),
        (ClientConfig, "max_connecting", 0),
        (ClientConfig, "max_retries", -1),
        (ClientConfig, "retry_delay", 0),
        (ClientConfig, "max_retry_delay", 0),
        (ClientConfig, "retry_backoff", 0.5),
        (ClientConfig, "retry_backoff", float("inf")),
        (ClientConfig, "cafile", "no/such/file.pem"),
        (ClientConfig, "server_certificate_hashes", ["abc"]),
    ],
)
def test_bad_value_of_one_side_names_its_field(cls, field, value):
    with pytest.raises(errors.ConfigError, match=r"\.$") as caught:
        cls(**{field: value})
    assert caught.value.field == field


def test_key_without_certificate_is_refused(tmp_path):
    key = tmp_path / "key.pem"
    key.touch()
    with pytest.raises(errors.ConfigError, match="without certfile") as caught:
        ServerConfig(keyfile=key)
    assert caught.value.field == "keyfile"


@pytest.mark.parametrize(
    "field", ["connect_timeout", "max_retries", "client_sockets", "max_streams"]
)
def test_none_means_no_limit_where_it_is_documented(field):
    assert getattr(ClientConfig(**{field: None}), field) is None


def test_idle_reaper_may_be_switched_off():
    assert ServerConfig(connection_idle_timeout=0).connection_idle_timeout == 0


@pytest.mark.parametrize(
    "value",
    [
        DIGEST,
        bytearray(DIGEST),
        memoryview(DIGEST),
        DIGEST.hex(),
        DIGEST.hex(":"),
        DIGEST.hex().upper(),
    ],
)
def test_certificate_hash_is_taken_as_bytes_and_as_hex(value):
    assert certificate_hash(value) == DIGEST


@pytest.mark.parametrize("value", ["", "abc", "zz" * 32, DIGEST[:-1], DIGEST.hex() + "00", None, 3])
def test_what_is_no_sha256_is_refused(value):
    with pytest.raises(errors.ConfigError, match="SHA-256"):
        certificate_hash(value)


@pytest.mark.parametrize("cls", [TransportConfig, ServerConfig, ClientConfig])
def test_every_field_has_a_default(cls):
    for field in dataclasses.fields(cls):
        assert (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )


@pytest.mark.parametrize(
    "alias, value, field, expected",
    [
        ("timeout", 3.0, "connect_timeout", 3.0),
        ("open_timeout", 3.0, "connect_timeout", 3.0),
        ("additional_headers", {"a": "b"}, "headers", {"a": "b"}),
        ("server_hostname", "a.example", "server_name", "a.example"),
        ("user_agent_header", "me", "user_agent", "me"),
        ("ca_certs", __file__, "cafile", __file__),
        ("verify_mode", 0, "verify", False),
    ],
)
def test_other_names_of_a_field_work_wherever_the_field_does(alias, value, field, expected):
    for config in (
        ClientConfig(**{alias: value}),
        ClientConfig().update(**{alias: value}),
        ClientConfig.from_dict({alias: value}),
    ):
        assert getattr(config, field) == expected
    with pytest.raises(TypeError, match=field):
        ClientConfig(**{alias: value, field: expected})


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_a_constructor_refuses_an_unknown_option_by_name(kind):
    with pytest.raises(errors.UnknownOption) as info:
        kind(bogus=1)
    assert info.value.field == "bogus"


@pytest.mark.parametrize(
    "kind, field, value",
    [
        (ClientConfig, "origin", 5),
        (ClientConfig, "origin", "https://a\r\nx: y"),
        (ClientConfig, "subprotocols", [5]),
        (ClientConfig, "subprotocols", "chat"),
        (ClientConfig, "server_name", "\u00e9"),
        (ClientConfig, "user_agent", "a\nb"),
        (ClientConfig, "verify", "x"),
        (ServerConfig, "origins", 5),
        (ServerConfig, "origins", [5]),
        (ServerConfig, "allowed_hosts", "example.com"),
        (ServerConfig, "allowed_hosts", [5]),
        (ServerConfig, "subprotocols", ["a\r\n"]),
    ],
)
def test_texts_that_cannot_be_sent_are_refused_by_name(kind, field, value):
    with pytest.raises(errors.ConfigError) as info:
        kind(**{field: value})
    assert info.value.field == field


@BOTH
def test_a_close_timeout_counts_for_websockets_if_it_was_given(cls):
    config = cls()
    assert (config.close_timeout, config.websocket_close_timeout) == (5.0, 10.0)
    # Copies that say nothing of it change nothing.
    for copy in (config.update(idle_timeout=7.0), cls.from_dict(config.to_dict())):
        assert copy.websocket_close_timeout == 10.0
    for given in (5, 5.0, 2.0, 10.0):
        for config in (cls(close_timeout=given), cls().update(close_timeout=given)):
            assert config.websocket_close_timeout == config.close_timeout == given
