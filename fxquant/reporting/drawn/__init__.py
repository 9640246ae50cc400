"""What a report's page draws."""
