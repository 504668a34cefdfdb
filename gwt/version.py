"""The version of gwt; floor 0, so that everyone may say it."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
