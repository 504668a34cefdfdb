"""Tests of gwt.protocol: no sockets, no greenlets, virtual time."""
