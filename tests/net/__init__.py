"""Tests of gwt.net over real sockets on the loopback interface."""
