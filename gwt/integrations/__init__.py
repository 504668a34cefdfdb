"""
gwt inside of what people already have: WSGI servers, frameworks, and old code.

Each module here is imported alone, and needs what it integrates with; nothing is imported here.
"""

__all__: list[str] = []
