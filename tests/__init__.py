"""The tests of gwt; each folder mirrors one of gwt/."""
