"""Types and prices at AWS: which types the region has, AWS's price list, and the prices of spot machines."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from trainers.configs.clouds import CloudName, Offer, PriceSource
from workers.clouds.accounts import AwsAccount
from workers.clouds.aws_errors import translate_errors
from workers.clouds.price_table import ReadPrice, load_price_table, make_offer, sort_offers
from workers.clouds.protocol import CloudError

# The price list has an endpoint in few regions, each with the prices of all.
PRICE_LIST_REGION = "us-east-1"
PRICE_FILTERS = {
    "instanceFamily": "GPU instance",
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "tenancy": "Shared",
    "capacitystatus": "Used",
}
# List prices change rarely, and reading them takes several requests.
PRICE_LIST_SECONDS = 24 * 3600.0
# After a failure, such as a missing permission.
RETRY_SECONDS = 3600.0

logger = logging.getLogger(__name__)


class AwsOffers:
    """The offers of a region."""

    def __init__(
        self, ec2: Any, open_client: Callable[..., Any], account: AwsAccount, prices: dict[str, float]
    ) -> None:
        """Create a reader; `prices` by type replace those of AWS."""
        self._ec2, self._open, self._account, self._given = ec2, open_client, account, prices
        self._list_prices: dict[str, ReadPrice] = {}
        self._read_at = -PRICE_LIST_SECONDS

    def read(self) -> list[Offer]:
        """Return the offers of the types in the table, on demand and spot, the cheapest first."""
        types = load_price_table(CloudName.aws).types
        with translate_errors("describe_instance_type_offerings"):
            pages = self._ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="region", Filters=[{"Name": "instance-type", "Values": sorted(types)}]
            )
            offered = {item["InstanceType"] for page in pages for item in page["InstanceTypeOfferings"]}
        on_demand, spot = self._read_list_prices(), self._read_spot_prices(sorted(offered & set(types)))
        now = datetime.now(UTC)
        offers = []
        for name in sorted(offered & set(types)):
            given = ReadPrice(self._given[name], now, PriceSource.setting) if name in self._given else None
            for is_spot, price in ((False, given or on_demand.get(name)), (True, spot.get(name))):
                offer = make_offer(
                    CloudName.aws,
                    types[name],
                    self._account.region,
                    price,
                    spot=is_spot,
                    is_default=name == self._account.instance_type,
                    is_home=True,
                )
                if offer is not None:
                    offers.append(offer)
        return sort_offers(offers)

    def _read_list_prices(self) -> dict[str, ReadPrice]:
        """Return the prices on demand; the last known where the price list cannot be read."""
        now = time.monotonic()
        if now - self._read_at < PRICE_LIST_SECONDS:
            return self._list_prices
        filters = {**PRICE_FILTERS, "regionCode": self._account.region}
        try:
            with translate_errors("get_products"):
                pages = (
                    self._open("pricing", region_name=PRICE_LIST_REGION)
                    .get_paginator("get_products")
                    .paginate(
                        ServiceCode="AmazonEC2",
                        Filters=[
                            {"Type": "TERM_MATCH", "Field": name, "Value": value}
                            for name, value in filters.items()
                        ],
                    )
                )
                self._list_prices = {
                    name: price for page in pages for name, price in _parse_products(page["PriceList"])
                }
        except CloudError as error:
            # The table remains; a person without this permission sees its date.
            logger.warning("AWS's price list was not read, the table's prices remain: %s", error)
            self._read_at = now - PRICE_LIST_SECONDS + RETRY_SECONDS
            return self._list_prices
        self._read_at = now
        return self._list_prices

    def _read_spot_prices(self, types: list[str]) -> dict[str, ReadPrice]:
        """Return the newest price of spot machines, the highest of the region's zones."""
        if not types:
            return {}
        try:
            with translate_errors("describe_spot_price_history"):
                pages = self._ec2.get_paginator("describe_spot_price_history").paginate(
                    InstanceTypes=types,
                    ProductDescriptions=["Linux/UNIX"],
                    StartTime=datetime.now(UTC),
                )
                entries = [entry for page in pages for entry in page["SpotPriceHistory"]]
        except CloudError as error:
            logger.warning("the prices of spot machines were not read: %s", error)
            return {}
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for entry in entries:
            key = (entry["InstanceType"], entry.get("AvailabilityZone", ""))
            if key not in newest or entry["Timestamp"] > newest[key]["Timestamp"]:
                newest[key] = entry
        prices: dict[str, ReadPrice] = {}
        for (name, _), entry in sorted(newest.items()):
            price = ReadPrice(float(entry["SpotPrice"]), entry["Timestamp"])
            if name not in prices or price.usd_per_hour > prices[name].usd_per_hour:
                prices[name] = price
        return prices


def _parse_products(products: list[str]) -> Iterator[tuple[str, ReadPrice]]:
    """Yield types with their price on demand from the JSON texts of the price list."""
    for text in products:
        product = json.loads(text)
        name = product["product"]["attributes"].get("instanceType")
        date = datetime.fromisoformat(product["publicationDate"])
        terms = product.get("terms", {}).get("OnDemand", {}).values()
        dimensions = [dimension for term in terms for dimension in term["priceDimensions"].values()]
        prices = [float(dimension["pricePerUnit"].get("USD", 0)) for dimension in dimensions]
        # Reservations of capacity are listed as products without a price.
        if name and any(prices):
            yield name, ReadPrice(max(prices), date if date.tzinfo else date.replace(tzinfo=UTC))
