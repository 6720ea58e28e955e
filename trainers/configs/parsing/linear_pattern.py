"""Regular expressions whose search takes time proportional to the text, whatever the pattern.

The engine is Rust's `regex`, which pydantic contains. Python's `re` needs exponential time for patterns such
as `(a+)+$`, so that a single response could stop an evaluation. Look-around and back-references, which need
such an engine, are refused; so is a pattern whose compiled form exceeds 10 MiB.
"""

from pydantic_core import SchemaError, SchemaValidator, core_schema

MAX_PATTERN_CHARACTERS = 1000


class LinearPattern:
    """A compiled pattern. Raises ValueError for one that cannot be compiled."""

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARACTERS:
            raise ValueError(f"the pattern is longer than {MAX_PATTERN_CHARACTERS:,} characters")
        schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True)
        try:
            self._validator = SchemaValidator(schema)
        except SchemaError as error:
            reason = str(error).strip().rpartition("\n")[2].partition("error: ")[2] or str(error)
            raise ValueError(f"the pattern {pattern!r} cannot be used: {reason.strip()}") from None

    def search(self, text: str) -> bool:
        """Return whether the pattern matches anywhere in the text."""
        return self._validator.isinstance_python(text)
