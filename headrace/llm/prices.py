"""What tokens cost, by the prices of the settings."""

from __future__ import annotations

from decimal import Decimal

from headrace.config import Price, Settings
from headrace.errors import ConfigError
from headrace.servers.llm import MODEL

_MILLION = Decimal(1_000_000)


def price(settings: Settings, model: str) -> Price | None:
    """A model's price: its own, else that of the longest name that its name begins with."""
    if model == MODEL:
        return Price(input=0.0, output=0.0)
    known = [name for name in settings.llm.prices if model == name or model.startswith(f"{name}-")]
    return settings.llm.prices[max(known, key=len)] if known else None


def cost(
    settings: Settings, model: str, input: int, output: int, cached: int = 0, batch: bool = False
) -> Decimal | None:
    """USD for so many tokens, `cached` of the input among them; None where no price is known."""
    found = price(settings, model)
    if found is None:
        return None
    cached = min(cached, input)
    cheaper = found.input if found.cached_input is None else found.cached_input
    total = (
        (input - cached) * Decimal(str(found.input))
        + cached * Decimal(str(cheaper))
        + output * Decimal(str(found.output))
    ) / _MILLION
    return total * Decimal(str(settings.llm.batch_price)) if batch else total


def check(settings: Settings, model: str) -> None:
    """A budget needs a price. Raises ConfigError, one line."""
    budgets = {"daily_budget": settings.llm.daily_budget, "max_cost": settings.llm.max_cost}
    for name, budget in budgets.items():
        if budget is not None and price(settings, model) is None:
            raise ConfigError(
                f"llm.{name}: no price is known for {model}; add it to llm.prices (USD per million "
                f"tokens: {model}: {{input: 1.0, output: 4.0}})"
            )
