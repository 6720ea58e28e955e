"""SSH tunnels between the control host and hosts outside its network."""
