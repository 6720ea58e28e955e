"""Configs of hosts that are launched in a cloud."""

from trainers.configs.clouds.offers import CloudName, HostSpec, MachineType, Offer, PriceSource, RegionName

__all__ = ["CloudName", "HostSpec", "MachineType", "Offer", "PriceSource", "RegionName"]
