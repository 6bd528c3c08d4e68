"""The vendor's documented behaviour as a small server with real state. Imports nothing of the gateway."""
