"""Types of machines with GPUs and their list prices, as a dated table, and offers made of it.

`prices.json` names the source and the date of its prices. A price that the cloud itself reports replaces the
table's; a type without either is not offered, since its cost could not be limited.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from trainers.configs.clouds import CloudName, Offer, PriceSource

logger = logging.getLogger(__name__)
_TABLE = Path(__file__).with_name("prices.json")


@dataclass(frozen=True)
class MachineSpecs:
    """What a machine of a type has."""

    type: str
    gpu_name: str | None
    gpu_count: int
    gpu_memory_gib: float | None
    cpu_count: int | None
    memory_gib: float | None
    usd_per_hour: float | None  # None: the table has no price of it.


@dataclass(frozen=True)
class PriceTable:
    """The list prices of a cloud on a day."""

    date: datetime
    source: str
    region: str | None  # The region of the prices; None where they are the same in all regions.
    types: Mapping[str, MachineSpecs]

    def has_prices_of(self, region: str) -> bool:
        """Return whether the prices are those of a region."""
        return self.region in (None, region)


@dataclass(frozen=True)
class ReadPrice:
    """A price that the cloud has reported, or that a setting states."""

    usd_per_hour: float
    date: datetime
    source: PriceSource = PriceSource.cloud


@cache
def load_price_table(cloud: CloudName) -> PriceTable:
    """Return the table of a cloud."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))[cloud]
    return PriceTable(
        date=datetime.fromisoformat(table["date"]).replace(tzinfo=UTC),
        source=table["source"],
        region=table["region"],
        types={row["type"]: MachineSpecs(**row) for row in table["types"]},
    )


def make_offer(
    cloud: CloudName,
    specs: MachineSpecs,
    region: str,
    price: ReadPrice | None,
    *,
    spot: bool = False,
    has_capacity: bool | None = None,
    is_default: bool = False,
    is_home: bool = False,
) -> Offer | None:
    """Return the offer of a type in a region; None if neither the cloud nor the table has its price."""
    table = load_price_table(cloud)
    if price is not None:
        usd, date, source = price.usd_per_hour, price.date, price.source
    elif specs.usd_per_hour is not None and table.has_prices_of(region) and not spot:
        usd, date, source = specs.usd_per_hour, table.date, PriceSource.table
    else:
        return None
    if not usd > 0:
        # No cap would ever end a machine of this price.
        logger.warning("%s gives %s the price %s, so it is not offered", cloud, specs.type, usd)
        return None
    try:
        return Offer(
            cloud=cloud,
            type=specs.type,
            region=region,
            is_default=is_default,
            is_home=is_home,
            spot=spot,
            gpu_name=specs.gpu_name,
            gpu_count=specs.gpu_count,
            gpu_memory_gib=specs.gpu_memory_gib,
            cpu_count=specs.cpu_count,
            memory_gib=specs.memory_gib,
            usd_per_hour=usd,
            price_source=source,
            price_date=date,
            has_capacity=has_capacity,
        )
    except ValidationError as error:
        # One strange type must not hide the others.
        logger.warning("%s describes %s in a way that is not understood: %s", cloud, specs.type, error)
        return None


def sort_offers(offers: list[Offer]) -> list[Offer]:
    """Return the offers with the cheapest first."""
    return sorted(offers, key=lambda offer: (offer.usd_per_hour, offer.type, offer.region))
