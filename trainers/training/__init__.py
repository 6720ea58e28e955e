"""The parts that training stages share."""
