"""How wide text is drawn: a little more than in the widest of the common sans-serif fonts."""

from __future__ import annotations

NARROW, WIDE = 0.36, 0.98
BY_CHARACTER = {
    **dict.fromkeys("ijl.,:;|!'` ", NARROW),
    **dict.fromkeys("ft()[]-/", 0.42),
    **dict.fromkeys("mwMW…→≤·@%", WIDE),
    "·": NARROW,
    **dict.fromkeys("ABCDEFGHKLNOPQRSTUVXYZ", 0.76),
}
OTHER = 0.63
BOLD = 1.1
"""How much wider bold text is."""


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Pixels, for a font size in pixels."""
    units = sum(BY_CHARACTER.get(character, OTHER) for character in text)
    return units * size * (BOLD if bold else 1.0)


def shortened(text: str, characters: int) -> str:
    """With an ellipsis for the end of what is too long."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"
