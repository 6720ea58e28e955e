"""Configs of hosts that are launched in a cloud."""

from trainers.configs.clouds.offers import (
    MAX_USD,
    CloudName,
    HostSpec,
    MachineType,
    Offer,
    PriceSource,
    RegionName,
)

__all__ = ["MAX_USD", "CloudName", "HostSpec", "MachineType", "Offer", "PriceSource", "RegionName"]
