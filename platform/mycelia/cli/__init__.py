"""The `mycelia` command."""
