"""What training stages share."""
