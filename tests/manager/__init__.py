"""Tests of gwt.manager with fake members and a clock turned by hand."""
