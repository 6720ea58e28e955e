"""Artifacts through the API of the control plane, for a host that reaches no other store."""
