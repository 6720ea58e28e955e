"""The routing table: the names that clients send as `model`, and the engines behind them."""
