"""Prices of OpenAI's fine-tuned models, from which the cost of recorded responses is estimated.

US dollars for a million tokens of standard requests, list prices of 2025 (https://openai.com/api/pricing).
Prices change: an operator sets others in TUNESMITH_OPENAI_PRICES, and a request may name its own.
"""

from app.settings import Settings, TokenPrices

PRICES_DATE = "2025"
DEFAULT_PRICES = {
    "gpt-4o-2024-08-06": TokenPrices(input=3.75, output=15.0),
    "gpt-4o-mini-2024-07-18": TokenPrices(input=0.30, output=1.20),
    "gpt-4.1-2025-04-14": TokenPrices(input=3.00, output=12.00),
    "gpt-4.1-mini-2025-04-14": TokenPrices(input=0.80, output=3.20),
    "gpt-4.1-nano-2025-04-14": TokenPrices(input=0.20, output=0.80),
    "gpt-3.5-turbo-0125": TokenPrices(input=3.00, output=6.00),
    "o4-mini-2025-04-16": TokenPrices(input=4.00, output=16.00),
}


def find_prices(settings: Settings, base: str) -> tuple[TokenPrices, str] | None:
    """Return the prices of models that were fine-tuned from a base, and where they come from."""
    if base in settings.openai_prices:
        return settings.openai_prices[base], "TUNESMITH_OPENAI_PRICES"
    if base in DEFAULT_PRICES:
        return DEFAULT_PRICES[base], f"list prices, {PRICES_DATE}"
    return None
