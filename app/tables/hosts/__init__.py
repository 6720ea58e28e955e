"""The tables of hosts that the service launches in clouds."""
