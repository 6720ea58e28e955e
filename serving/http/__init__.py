"""HTTP parts that the engines and the gateway share."""
