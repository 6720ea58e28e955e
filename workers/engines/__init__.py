"""Deployments as this worker holds them, and the engines that they share."""
